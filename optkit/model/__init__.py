"""What travels between the rooms: models, their signatures, manifests and bundles."""
