"""Structured pruning: which slices of which tensors belong together, what they are worth, what to cut."""
