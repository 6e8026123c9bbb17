"""Runs what exists: a model and batches in, {output name: array} out."""
