"""Referring expressions for annotated segments."""
