"""Working parts of the passes that fuse operators."""
