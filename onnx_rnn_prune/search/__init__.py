"""Search for the smallest or fastest model within a limit."""
