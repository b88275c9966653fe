"""What happens between the first attempt of a transaction and the answer to its COMMIT."""
