"""A tiny training run, for tests of the loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax.bundle.run_checkpoints import RunCheckpoints
from ecapa_jax.train import loop
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.data.manifest import read_manifest
from ecapa_jax.train.data.prepare import prepare
from ecapa_jax.train.settings import config_document
from ecapa_jax.train.start import CHECKPOINTS, start

STEPS = 12

COMPILE_CACHE = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
"""Options with which a separate process finds the programs that the tests have compiled."""

PROGRAM = """
import json, sys
from pathlib import Path
from ecapa_jax.cli.progress import TrainProgress
from ecapa_jax.train.loop import train
from ecapa_jax.train.settings import build_config
with TrainProgress() as progress:
    train(build_config(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]), progress)
"""


class QuietProgress:
    """Progress that stores the notes and prints nothing."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, step: int, total: int, line: dict[str, Any]) -> None:
        assert 0 < step <= total
        assert line


def tiny_document(collection: Path, folder: Path) -> dict[str, Any]:
    """Returns a configuration, as parsed from TOML, that uses each part of the loop.

    Its manifest and dev list are written to `folder`.
    """
    made = prepare(collection, folder / "prepared")
    files = sorted(str(path.relative_to(collection)) for path in collection.rglob("*.flac"))
    trials = [(int(a.split("/")[0] == b.split("/")[0]), a, b) for i, a in enumerate(files[:9]) for b in files[:i]]
    dev = folder / "dev.txt"
    dev.write_text("".join(f"{label} {a} {b}\n" for label, a, b in trials))
    network = {"channels": [8] * 4, "mfa_channels": 24, "se_channels": 8, "attention_channels": 8, "embedding_dim": 16}
    return {
        "model": {"ecapa": network},
        "data": {"manifest": str(made.manifest), "batch_size": 4, "crop_seconds": 0.5, "threads": 2, "prefetch": 2},
        "augment": {"probability": 0.5, "rooms": 2},
        "loss": {"schedule": "linear", "start": 2, "end": 8},
        "optim": {"peak": 0.02, "floor": 1e-4, "warmup": 3, "ema": 0.9, "clip_norm": 5.0},
        "run": {
            "length": STEPS, "log_every": 3, "save_every": 5, "dev_every": 6, "dev_trials": str(dev),
            "dev_root": str(collection),
        },
    }  # fmt: skip


def state_of(config: TrainConfig, directory: Path) -> tuple[int, dict[str, np.ndarray]]:
    with RunCheckpoints(directory / CHECKPOINTS, config.run.keep) as checkpoints:
        found = start(config, read_manifest(config.data.manifest), checkpoints)
    return found.step, loop.weights(found.state)


def stop_after(steps: int) -> Any:
    asked = iter(range(10**9))
    return lambda: next(asked) + 1 >= steps


def assert_equal_runs(config: TrainConfig, one: Path, other: Path) -> None:
    (step, ours), (expected_step, theirs) = state_of(config, one), state_of(config, other)
    assert step == expected_step == STEPS
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def train_and_kill(config: TrainConfig, directory: Path, moment: Callable[[Path], bool]) -> bool:
    """Trains in a separate process and kills it (SIGKILL) when `moment` returns True.

    Returns False if the process ended before.
    """
    document = directory.parent / "config.json"
    document.write_text(json.dumps(config_document(config)))
    command = [sys.executable, "-c", PROGRAM, str(document), str(directory)]
    environment = os.environ | {name.upper(): str(jax.config.values[name]) for name in COMPILE_CACHE}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None:
            if moment(directory):
                process.kill()
                return True
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        assert process.returncode == 0, process.stderr.read()
    return False
