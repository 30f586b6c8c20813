"""Recordings, measures and bounds that the parity tests share."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import ArrayLike

from ecapa_jax.config import FbankConfig, ModelConfig
from helpers import oracle
from helpers.weights import random_tensors, small_config

ROOT = Path(__file__).parents[2]
AUDIO = ROOT / "examples" / "audio"
CORPUS = ROOT.parent / "shared" / "data" / "librispeech_test_other"
RATE = 16000

FEATURE_BOUND = 2e-3
LAYER_BOUND = 1e-5
EMBEDDING_BOUND = 1e-4
COSINE_BOUND = 0.999999

DECIBELS_PER_NEPER = 10 / np.log(10)


@functools.cache
def recordings() -> dict[str, np.ndarray]:
    """Returns the six complete recordings of the examples."""
    paths = sorted(AUDIO.glob("*.flac"))
    return {path.stem: soundfile.read(path, dtype="float32")[0] for path in paths}


def clipped(speech: np.ndarray) -> np.ndarray:
    return np.clip(30 * speech, -1, 1)


def zeros_inside(speech: np.ndarray) -> np.ndarray:
    """Replaces the middle third by digital silence."""
    third = len(speech) // 3
    return np.concatenate([speech[:third], np.zeros(third, np.float32), speech[2 * third :]])


def wide_range(n_samples: int) -> np.ndarray:
    """Returns a tone that falls by 120 dB, with noise at -140 dB."""
    time = np.arange(n_samples) / RATE
    tone = np.sin(2 * np.pi * 440 * time) * 10 ** -np.linspace(0, 6, n_samples)
    return (tone + 1e-7 * np.random.default_rng(0).standard_normal(n_samples)).astype(np.float32)


def noise(n_samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


def impulse(n_samples: int) -> np.ndarray:
    samples = np.zeros(n_samples, np.float32)
    samples[n_samples // 2] = 1
    return samples


@functools.cache
def speech() -> list[np.ndarray]:
    """Returns half a minute of each of three speakers: real speech if the corpus is available, else the examples."""
    speakers = sorted(CORPUS.iterdir())[:3] if CORPUS.is_dir() else []
    real = [[soundfile.read(path, dtype="float32")[0] for path in sorted(s.glob("*.flac"))[:8]] for s in speakers]
    made = [[recordings()[f"{voice}_1"], recordings()[f"{voice}_2"]] for voice in ("awb", "rms", "slt")]
    return [np.resize(np.concatenate(parts)[6000:], 30 * RATE) for parts in real or made]


def sound(name: str, n_samples: int) -> np.ndarray:
    """Returns a sound of this length by its name in the parity tables."""
    first, second, third = (samples[:n_samples] for samples in speech())
    makers = {
        "speech_1": lambda: first,
        "speech_2": lambda: second,
        "speech_3": lambda: third,
        "clipped": lambda: clipped(first),
        "zeros_inside": lambda: zeros_inside(second),
        "silence": lambda: np.zeros(n_samples, np.float32),
        "noise": lambda: noise(n_samples),
        "wide_range": lambda: wide_range(n_samples),
    }
    return makers[name]()


def pad_batch(waveforms: Iterable[np.ndarray], size: int = 0, padding: float = np.nan) -> tuple[np.ndarray, np.ndarray]:
    """Pads waveforms on the right to [B, S], with S at least `size`, and returns them with the true lengths."""
    rows = list(waveforms)
    lengths = np.array([len(row) for row in rows], np.int32)
    batch = np.full((len(rows), max(size, *lengths)), padding, np.float32)
    for place, row in zip(batch, rows, strict=True):
        place[: len(row)] = row
    return batch, lengths


def in_nepers(config: FbankConfig, error: float) -> float:
    """Converts a difference of log energies to nepers, the unit of the bounds."""
    return float(error / DECIBELS_PER_NEPER if config.log == "db" else error)


@dataclasses.dataclass(frozen=True)
class FeatureError:
    """The distance from the float64 oracle in nepers: worst, worst where the energy is above the floor, and RMS."""

    worst: float
    above_floor: float
    rms: float


def feature_error(config: FbankConfig, features: np.ndarray, waveform: np.ndarray) -> FeatureError:
    """Compares the features [T, M] of one utterance with the oracle."""
    raw = oracle.fbank(dataclasses.replace(config, normalization="none", top_db=None), waveform)
    floor = np.log(config.floor) * (DECIBELS_PER_NEPER if config.log == "db" else 1)
    error = np.abs(np.asarray(features, np.float64) - oracle.fbank(config, waveform))
    above = float(error[raw > floor].max(initial=0))
    rms = float(np.sqrt(np.mean(error**2)))
    return FeatureError(*(in_nepers(config, value) for value in (float(error.max()), above, rms)))


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the worst error divided by the largest value."""
    wide = np.asarray(theirs, np.float64)
    assert ours.shape == wide.shape, f"{ours.shape} is not {wide.shape}"
    return float(np.abs(np.asarray(ours, np.float64) - wide).max() / np.abs(wide).max())


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def same_embedding(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Returns whether an embedding is within the bounds; NaN is not."""
    return relative_error(ours, theirs) <= EMBEDDING_BOUND and cosine(ours, theirs) >= COSINE_BOUND


def same_embeddings(ours: ArrayLike, theirs: ArrayLike) -> bool:
    """Returns whether every row of [N, E] is within the bounds.

    Rows are not identical in another batch, because the order of additions differs.
    """
    pairs = list(zip(np.asarray(ours), np.asarray(theirs), strict=True))
    worst = max(relative_error(a, b) for a, b in pairs)
    print(f"largest difference of {len(pairs)} embeddings: {worst:.1e} of the largest value")
    return all(same_embedding(a, b) for a, b in pairs)


# Golden values: outputs of the original PyTorch code


GOLDEN = Path(__file__).parents[1] / "golden" / "golden.npz"
GOLDEN_WIDTH = 64
GOLDEN_SEEDS = {"3dspeaker": 11, "speechbrain": 12}
GOLDEN_STEP = 16
"""The golden values contain only every n-th frame of the features."""


@functools.cache
def golden_signals() -> dict[str, np.ndarray]:
    """Returns the six recordings and four short sounds that reveal floors and clamps."""
    speech = recordings()
    return {
        **speech,
        "silence": np.zeros(20000, np.float32),
        "clipped": clipped(speech["slt_1"][20000:46000]),
        "zeros_inside": zeros_inside(speech["rms_1"][20000:50000]),
        "faint": zeros_inside(np.float32(1e-4) * speech["awb_1"][20000:50000]),
    }


def golden_model(family: str) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Returns a family's configuration and checkpoint, generated from the seed."""
    config = small_config(family, GOLDEN_WIDTH)
    return config, random_tensors(config.ecapa, GOLDEN_SEEDS[family])


def weights_hash(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape} ".encode() + tensors[name].tobytes())
    return digest.hexdigest()


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def golden_feature_error(config: FbankConfig, family: str, signal: str, features: np.ndarray) -> float:
    """Returns the worst distance in nepers of features [T, M] from the golden values, or infinity if T differs."""
    theirs = golden()[f"{family}/{signal}/features"]
    if len(features) != golden()[f"{family}/{signal}/frames"]:
        return float("inf")
    return in_nepers(config, float(np.abs(features[::GOLDEN_STEP] - theirs).max()))
