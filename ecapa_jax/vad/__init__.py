"""Speech detection: where somebody speaks in a recording, and whether anybody does.

The network is silero-vad's of 16 kHz, in JAX, with its weights (MIT licence, LICENSE.silero-vad beside them).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecapa_jax.vad.gate import holds_speech, speech_seconds
    from ecapa_jax.vad.network import speech_probabilities
    from ecapa_jax.vad.recordings import recording_probabilities, speech_segments
    from ecapa_jax.vad.segments import Segment, segments_from_probabilities
    from ecapa_jax.vad.silence import cut_silence
    from ecapa_jax.vad.weights import load_weights

_HOME = {
    "holds_speech": "gate",
    "speech_seconds": "gate",
    "speech_probabilities": "network",
    "recording_probabilities": "recordings",
    "speech_segments": "recordings",
    "Segment": "segments",
    "segments_from_probabilities": "segments",
    "cut_silence": "silence",
    "load_weights": "weights",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Imports a name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'ecapa_jax.vad' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ecapa_jax.vad.{_HOME[name]}"), name)
