"""Scores of embeddings (jnp) and the error rates of scores (NumPy)."""
