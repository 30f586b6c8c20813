"""Waveform to log-mel features and mask, in jnp; one config for all front ends."""
