"""Working parts of the passes that compute in 16-bit floating types."""
