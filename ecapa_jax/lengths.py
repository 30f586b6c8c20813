"""How long an utterance must be."""

from __future__ import annotations

from ecapa_jax.config import ModelConfig
from ecapa_jax.features import frames


def minimum_samples(config: ModelConfig) -> int:
    """Fewest samples that an utterance may have: enough frames for its normalisation and its reflect padding."""
    return frames.minimum_samples(config.fbank, max(config.ecapa.minimum_frames, config.fbank.minimum_frames))
