"""Turns YAML into passes, data sources and limits, and blames the right line."""
