"""The real games."""
