"""Working parts that the quantizing passes share."""
