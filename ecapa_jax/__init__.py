"""ECAPA-TDNN speaker verification in JAX."""
