"""Small checkpoints of the families with their own front end, with random weights in the families' layouts."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from ecapa_jax import functional
from ecapa_jax.config import ModelConfig
from ecapa_jax.convert.rules import apply_rules, flatten
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.features.constants import stored_constants
from ecapa_jax.presets import PRESETS
from helpers import parity
from helpers.weights import random_values

SEEDS = {
    "taoruijie": 21,
    "nemo": 22,
    "nemo-2.5": 23,
    "espnet": 24,
    "wespeaker": 25,
    "speechbrain-langid": 26,
    "rdino": 27,
    "mvector": 28,
}
GOLDEN = parity.GOLDEN.with_name("families.npz")
WIDTH = 16


def config(family: str) -> ModelConfig:
    """Returns the published configuration with 16 channels."""
    preset = PRESETS["wespeaker-c1024" if family == "wespeaker" else family]
    return ModelConfig(
        fbank=preset.fbank,
        ecapa=dataclasses.replace(preset.ecapa, channels=(WIDTH,) * 4, mfa_channels=3 * WIDTH, embedding_dim=24),
    )


def signals() -> dict[str, np.ndarray]:
    """Returns short sounds that reveal floors, clamps and blank frames; one of them fills the last blank frame."""
    every = parity.golden_signals()
    return {
        "speech": every["awb_1"][10000:30321],
        "clipped": every["clipped"][:17600],
        "zeros_inside": every["zeros_inside"][:24001],
        "faint": np.float32(100) * every["faint"][:19999],
    }


def leaves(family: str) -> dict[str, np.ndarray]:
    """Returns random float32 weights by this library's paths, with [K, I, O] kernels."""
    model = config(family)
    generator = np.random.default_rng(SEEDS[family])
    found = {
        path: random_values(generator, path, leaf.shape).T
        for path, leaf in flatten(functional.abstract(model)).items()
        if not path.startswith("constants/")
    }
    _add_dead_channels(found, model.ecapa.pooled_std.epsilon**0.5)
    if model.ecapa.context_std.epsilon_mode == "add":
        _add_faint_channels(found, model.ecapa.context_std.epsilon**0.5)
    return found | {f"constants/{name}": array for name, array in stored_constants(model.fbank).items()}


def tensors(family: str) -> dict[str, np.ndarray]:
    """Returns a float32 checkpoint that the family's own code can load, without counters."""
    own = leaves(family)
    rules = FAMILIES[family].rules(config(family).ecapa)
    return {rule.source: np.ascontiguousarray(rule.op.inverse(own[rule.target])) for rule in rules}


def _add_dead_channels(leaves: dict[str, np.ndarray], floor: float) -> None:
    """Makes some MFA channels constant, so that their deviations equal the floor, and gives them large weights."""
    channels = leaves["params/mfa/conv/bias"].shape[0]
    dead = slice(0, channels // 4)
    leaves["params/mfa/conv/kernel"][..., dead] = 0
    leaves["params/mfa/conv/bias"][dead] = -1
    deviations = slice(channels, channels + channels // 4)
    leaves["batch_stats/pooled_norm/mean"][deviations] = 0
    leaves["batch_stats/pooled_norm/var"][deviations] = floor**2
    leaves["params/pooling/hidden/kernel"][:, 2 * channels : 2 * channels + channels // 4] *= 0.3 / floor


def _add_faint_channels(leaves: dict[str, np.ndarray], floor: float) -> None:
    """Makes some MFA channels vary by about the floor, so that adding the floor differs from clamping to it."""
    channels = leaves["params/mfa/conv/bias"].shape[0]
    faint = slice(channels // 4, channels // 4 + 6)
    leaves["params/mfa/conv/kernel"][..., faint] *= floor
    leaves["params/mfa/conv/bias"][faint] = 3 * floor
    deviations = slice(faint.start + channels, faint.stop + channels)
    leaves["batch_stats/pooled_norm/mean"][deviations] = 0
    leaves["batch_stats/pooled_norm/var"][deviations] = floor**2
    leaves["params/pooling/hidden/kernel"][:, 2 * channels + faint.start : 2 * channels + faint.stop] *= 0.1 / floor


def variables(family: str) -> dict[str, Any]:
    """Returns the variables that the converter makes from `tensors`."""
    model, chosen = config(family), FAMILIES[family]
    rules = chosen.rules(model.ecapa)
    return apply_rules(rules, chosen.ignored, tensors(family), functional.abstract(model))[0]


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """Reads the arrays that golden/make_families.py stored."""
    with np.load(GOLDEN) as file:
        return dict(file)
