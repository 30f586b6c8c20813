"""Makes a folder with the files that README and docs assume: recordings, lists, a checkpoint, a bundle.

The files are made from the demo's six recordings. All clips have one length, so that few programs are compiled. A
recording with changed speed serves as another speaker.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from ecapa_jax import functional
from ecapa_jax.api import default_bundle
from ecapa_jax.bundle.bundle import Bundle, save_bundle
from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.convert.export import source_tensors, write_torch
from ecapa_jax.scoring.config import Scoring
from helpers.pages import ROOT

RATE = 16000
SECONDS = 1.2
SPEEDS = (1.0, 0.8, 1.2)
RECORDINGS = {
    "a.wav": "rms_1",
    "b.wav": "rms_2",
    "b.mp3": "rms_2",
    "ann_1.wav": "slt_1",
    "ann_2.wav": "slt_2",
    "bob.flac": "awb_1",
    "who.wav": "slt_1",
}


def fill_sandbox(folder: Path) -> Path:
    """Fills a folder and returns it."""
    (folder / "examples" / "audio").mkdir(parents=True)
    for recording in sorted((ROOT / "examples" / "audio").glob("*.flac")):
        soundfile.write(folder / "examples" / "audio" / recording.name, _clip(recording.stem, 1.0, 0), RATE)
    for name, source in RECORDINGS.items():
        soundfile.write(folder / name, _clip(source, 1.0, 0), RATE)
    (folder / "recordings.csv").write_text("id,path\n" + "".join(f"{name},{name}\n" for name in RECORDINGS))
    voices = _voices()
    for name, clips in voices.items():
        home = folder / ("others" if name in list(voices)[6:] else "wav") / name
        home.mkdir(parents=True)
        for number, clip in enumerate(clips):
            soundfile.write(home / f"{number}.wav", clip, RATE)
    speakers = list(voices)
    _write_trials(folder / "dev.txt", speakers[:3])
    _write_trials(folder / "eval.txt", speakers[3:6])
    shutil.copytree(default_bundle(), folder / "mine")
    _save_tiny_bundle(folder / "BUNDLE")
    write_torch(folder / "ecapa_tdnn.bin", source_tensors(default_bundle()))
    return folder


def _save_tiny_bundle(path: Path) -> None:
    """Saves a bundle with one SE-Res2 block and random weights, for blocks that compile often and do not use scores."""
    network = EcapaConfig(
        channels=(16, 16),
        kernel_sizes=(5, 3),
        dilations=(2,),
        res2_scale=2,
        se_channels=8,
        attention_channels=8,
        mfa_channels=16,
    )
    config = ModelConfig(ecapa=network)
    variables = jax.tree.map(np.asarray, functional.init(config, jax.random.key(0)))
    save_bundle(Bundle(config=config, variables=variables, scoring=Scoring(threshold=0.5), provenance={}), path)


def page_namespace() -> dict[str, Any]:
    """Returns the variables that pages assume to exist."""
    rows = np.random.default_rng(0).standard_normal((316, 192)).astype(np.float32)
    return {
        "waveform": _clip("slt_1", 1.0, 0),
        "ids": list(RECORDINGS),
        "paths": list(RECORDINGS),
        "names": [f"speaker {number}" for number in range(8)],
        "embeddings": rows[:8],
        "enrolments": rows[:8],
        "tests": rows[8:16],
        "cohort": rows[16:],
        "cosines": np.float32([0.2, 0.5]),
        "enrolment_rows": np.array([0, 1]),
        "test_rows": np.array([2, 3]),
    }


def _voices() -> dict[str, list[Float32[np.ndarray, " samples"]]]:
    """Returns two clips of each sentence for nine voices."""
    named = {}
    for speed, voice in itertools.product(SPEEDS, ("slt", "rms", "awb")):
        named[f"{voice}{round(100 * speed)}"] = [
            _clip(f"{voice}_{sentence}", speed, part) for sentence, part in itertools.product((1, 2), (0, 1))
        ]
    return named


def _clip(source: str, speed: float, part: int) -> Float32[np.ndarray, " samples"]:
    samples, _ = soundfile.read(ROOT / "examples" / "audio" / f"{source}.flac", dtype="float32")
    changed = soxr.resample(samples, RATE * speed, RATE).astype(np.float32)
    start = round((0.3 + part * SECONDS) * RATE)
    return changed[start : start + round(SECONDS * RATE)]


def _write_trials(path: Path, speakers: list[str]) -> None:
    files = [(speaker, f"{speaker}/{number}.wav") for speaker in speakers for number in range(4)]
    lines = [f"{int(a[0] == b[0])} {a[1]} {b[1]}\n" for a, b in itertools.combinations(files, 2)]
    path.write_text("".join(lines))
