"""Small models that compile quickly, and speech for them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from ecapa_jax import functional
from ecapa_jax.config import ModelConfig
from ecapa_jax.convert.rules import flatten, unflatten
from ecapa_jax.features.constants import stored_constants
from ecapa_jax.presets import PRESETS
from helpers import parity
from helpers.weights import random_values

RATE = 16000


def small_mels(blocks: int = 1, framing: str = "kaldi_reflect", pad_to: int = 1, **ecapa: Any) -> ModelConfig:
    base = PRESETS["3dspeaker"]
    fbank = dataclasses.replace(base.fbank, framing=framing, n_mels=20, pad_to=pad_to, normalization="none")
    network = dataclasses.replace(
        base.ecapa,
        n_mels=20,
        channels=(16,) * (blocks + 1),
        kernel_sizes=(5,) + (3,) * blocks,
        dilations=(2, 3)[:blocks],
        res2_scale=2,
        se_channels=8,
        attention_channels=8,
        mfa_channels=32,
        embedding_dim=12,
        **ecapa,
    )
    return ModelConfig(fbank=fbank, ecapa=network)


def random_variables(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Returns random weights with some constant MFA channels."""
    generator = np.random.default_rng(seed)
    leaves = {
        path: np.ascontiguousarray(random_values(generator, path, leaf.shape).T)
        for path, leaf in flatten(functional.abstract(config)).items()
        if not path.startswith("constants/")
    }
    leaves["params/mfa/conv/kernel"][..., :3] = 0
    leaves |= {f"constants/{name}": array for name, array in stored_constants(config.fbank).items()}
    return {"params": {}, "batch_stats": {}, "constants": {}, **unflatten(leaves)}


@functools.cache
def sound(seconds: float) -> np.ndarray:
    """Returns speech of three voices with a silent and a faint part, whose dynamic range exceeds 80 dB."""
    speech = np.concatenate(list(parity.recordings().values()))
    waveform = np.resize(speech, round(seconds * RATE)).copy()
    waveform[RATE : RATE + 8000] = 0
    waveform[2 * RATE : 2 * RATE + 8000] *= 1e-4
    return waveform
