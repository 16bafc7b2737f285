"""The built-in family of problems: chains of list operations, one line each."""
