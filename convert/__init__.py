"""Converts checkpoints to bundles without PyTorch. The folder `convert/` is imported as `ecapa_jax.convert`."""
