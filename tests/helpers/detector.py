"""Recordings, random probabilities and options for the tests of speech detection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from helpers.nonspeech import nonspeech

AUDIO = Path(__file__).parents[2] / "examples" / "audio"
GOLDEN = Path(__file__).parents[1] / "golden" / "silero.npz"


def golden_waveforms() -> dict[str, np.ndarray]:
    """Returns speech and other sounds of 2.5 s plus a part of a frame."""
    speech = {path.stem: soundfile.read(path, dtype="float32")[0] for path in sorted(AUDIO.glob("*_1.flac"))}
    sounds = {kind: nonspeech(kind, seed) for seed, kind in enumerate(("dither", "hum", "click", "beeps", "pink"))}
    mixed = {"noisy": speech["slt_1"][:48000] * 0.3 + nonspeech("white", 9)}
    return {name: np.ascontiguousarray(samples[:40123]) for name, samples in (speech | sounds | mixed).items()}


def random_probabilities(seed: int) -> np.ndarray:
    """Returns probabilities of speech and pauses of random lengths, on both sides of the thresholds."""
    rng = np.random.default_rng(seed)
    runs = [
        np.full(rng.geometric(1 / rng.choice([2, 5, 20, 60])), level)
        for level in rng.choice([0.02, 0.2, 0.4, 0.6, 0.95], 40)
    ]
    values = np.concatenate(runs) + rng.normal(0, 0.05, sum(map(len, runs)))
    return np.clip(values, 0, 1).astype(np.float32)


def random_options(seed: int) -> dict[str, Any]:
    """Returns random options that silero-vad and this library have, by silero-vad's names."""
    rng = np.random.default_rng(1_000_003 + seed)
    options: dict[str, Any] = {
        "threshold": float(rng.choice([0.1, 0.3, 0.5, 0.8])),
        "min_speech_duration_ms": float(rng.choice([0, 100, 250, 1000])),
        "min_silence_duration_ms": float(rng.choice([0, 50, 100, 500])),
        "speech_pad_ms": float(rng.choice([0, 30, 100, 400])),
    }
    if rng.random() < 0.6:
        options["max_speech_duration_s"] = float(rng.choice([0.5, 1.0, 2.0, 5.0, 15.0]))
    if rng.random() < 0.3:
        options["neg_threshold"] = float(rng.choice([0.05, 0.3, 0.45]))
    return options
