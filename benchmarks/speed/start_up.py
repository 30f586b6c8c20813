"""Measures whole processes from start to result: `ecapa-jax verify a b`, and SpeechBrain's equivalent."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile

from benchmarks.speed import turns
from benchmarks.speed.engines_jax import variables_of
from benchmarks.speed.model import RATE, Model, noise
from benchmarks.speed.speechbrain_verify import write_source
from ecapa_jax.api import default_bundle
from ecapa_jax.bundle.bundle import Bundle, load_bundle, save_bundle

ROOT = Path(__file__).parents[2]
SECONDS = (3.0, 4.0)


def measure(folder: Path, width: int, n_turns: int) -> list[dict[str, Any]]:
    """Returns rows for a model with `width` channels, and for the packaged model and SpeechBrain's at its width.

    Each command runs once before the measurement, so that the tools' caches are warm.
    """
    recordings = _recordings(folder)
    packaged = load_bundle(default_bundle()).config.ecapa.channels[0]
    rows = []
    for title, own, size in ((f"C = {width}", _bundle(folder, width), width), ("packaged model", None, packaged)):
        source = write_source(Model(size, folder), folder / f"speechbrain-c{size}")
        jobs = {
            "ours": [*_ecapa_jax(), *recordings, "--threshold", "0.5", *(["--model", str(own)] if own else [])],
            "speechbrain": [sys.executable, "-m", "benchmarks.speed.speechbrain_verify", str(source), *recordings],
        }
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for turn in range(n_turns + 1):
            for name, command in jobs.items():
                seconds = _time_command(command)
                if turn:
                    times[name].append(seconds)
        medians = {name: turns.median(every) for name, every in times.items()}
        than = turns.times_as_fast(times["ours"], times["speechbrain"])
        rows.append({"model": title, "width": size, "times": times, "median": medians, "than_speechbrain": than})
    return rows


def _time_command(command: list[str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return seconds


def _ecapa_jax() -> list[str]:
    return [str(Path(sysconfig.get_path("scripts")) / "ecapa-jax"), "verify"]


def _recordings(folder: Path) -> list[str]:
    paths = [folder / f"recording-{index}.wav" for index in range(len(SECONDS))]
    folder.mkdir(parents=True, exist_ok=True)
    for path, seconds in zip(paths, SECONDS, strict=True):
        soundfile.write(path, noise(1, seconds)[0], RATE)
    return [str(path) for path in paths]


def _bundle(folder: Path, width: int) -> Path:
    model = Model(width, folder)
    model.write()
    variables = jax.tree.map(np.asarray, variables_of(model, "3dspeaker"))
    return save_bundle(Bundle(config=model.config(), variables=variables), folder / f"bundle-c{width}", force=True)
