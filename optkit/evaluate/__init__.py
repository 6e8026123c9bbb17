"""Is it still the same model? Fidelity, task metrics, limits, verdict."""
