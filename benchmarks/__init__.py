"""Optkit timed, beside the direct library calls and its peers."""
