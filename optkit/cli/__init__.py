"""Translates between a person and one function."""
