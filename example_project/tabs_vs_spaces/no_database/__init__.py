"""The database of a command that has none, which says what to do about it."""
