"""The passes: one public file each. ``_base`` says what a pass is, ``_registry`` finds them by name."""
