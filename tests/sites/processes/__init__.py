"""What tests of a process's life run in real workers, and how they start them."""
