"""Calls passes in order and holds them to their word."""
