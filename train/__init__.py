"""Training: data, augmentation, losses, step, loop. The folder `train/` is imported as `ecapa_jax.train`."""
