"""Recordings and bundles for tests of corpora and speaker stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from ecapa_jax.bundle.bundle import Bundle, save_bundle
from ecapa_jax.scoring.config import Scoring
from helpers.weights import random_tensors, shallow_config, variables_of

RATE = 16000

BAD = {
    "missing.wav": "no such file",
    "not audio.wav": "not audio",
    "truncated.wav": "truncated",
    "empty.wav": "is empty",
    "short.wav": "too short",
    "silent.wav": "no signal",
    "nan.wav": "not finite",
    "a folder.wav": "is a directory",
    "nul\0byte.wav": "can't be read",
}
"""The bad recordings in the fixture `folder`, and words of their error messages."""


def small_bundle(path: Path) -> Path:
    """Saves a bundle with random weights, 16 channels and the threshold 0.5."""
    config = shallow_config(blocks=2)
    variables = variables_of(config.ecapa, random_tensors(config.ecapa))
    whole = Bundle(config=config, variables=variables, scoring=Scoring(threshold=0.5), provenance={"family": "none"})
    return save_bundle(whole, path)


def speech(seconds: float, seed: int = 0, gain: float = 0.1) -> np.ndarray:
    """Returns noise whose level changes as that of speech does."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (gain * noise * (1.2 + np.sin((5 + seed % 7) * time))).astype(np.float32)


def write_speech(path: Path, seconds: float, seed: int = 0, gain: float = 0.1) -> Path:
    """Writes a recording of 32-bit floats."""
    soundfile.write(path, speech(seconds, seed, gain), RATE, subtype="FLOAT")
    return path
