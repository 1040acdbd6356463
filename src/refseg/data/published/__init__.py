"""The published datasets, read from a copy."""
