"""Batches for calibration, search and evaluation, and the preprocessing that makes them from raw inputs."""
