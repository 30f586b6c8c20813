"""A model on disk: the bundle, its Orbax checkpoint, its card."""
