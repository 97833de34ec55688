"""Written-out recurrences become the operators that they are."""
