"""What each peer makes of a subject: one file each, with ``products(subject, folder) -> list[Product]``."""
