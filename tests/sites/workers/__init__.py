"""A small site that tests run under real application servers."""
