"""Tells the facts of a Manifest as text, Markdown, JUnit and JSON."""
