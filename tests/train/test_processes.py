"""Tests of training with several processes on one machine, over the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.loop import history, train
from ecapa_jax.train.settings import build_config
from ecapa_jax.train.start import CHECKPOINTS
from helpers.training import STEPS, QuietProgress, state_of, tiny_document

NETWORK = {
    "channels": [8, 8], "kernel_sizes": [5, 3], "dilations": [2], "res2_scale": 2, "mfa_channels": 8,
    "se_channels": 8, "attention_channels": 8, "embedding_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def document(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run on five speakers with small steps, so that rounding differences do not grow."""
    made = tiny_document(collection, tmp_path_factory.mktemp("processes"))
    made["model"]["ecapa"] = NETWORK
    made["optim"]["peak"] = 0.002
    return made


def train_alone(document: dict[str, Any], directory: Path) -> list[dict[str, Any]]:
    assert train(build_config(document), directory, QuietProgress()).finished
    return history(directory)


def write_toml(path: Path, document: dict[str, Any]) -> Path:
    """Writes tables of plain values as TOML."""

    def lines(table: dict[str, Any], name: str) -> list[str]:
        inner = [key for key, value in table.items() if isinstance(value, dict)]
        own = [f"{key} = {json.dumps(value)}" for key, value in table.items() if key not in inner]
        return [f"[{name}]", *own, *(line for key in inner for line in lines(table[key], f"{name}.{key}"))]

    path.write_text("\n".join(line for name, table in document.items() for line in lines(table, name)) + "\n")
    return path


def start_processes(document: dict[str, Any], directory: Path, number: int) -> subprocess.Popen[str]:
    """Starts `ecapa-jax train --processes` with one device per process and without optimization, to compile faster."""
    config = write_toml(directory.with_suffix(".toml"), document)
    command = [sys.executable, "-m", "ecapa_jax.cli.main", "train", str(config), "--out", str(directory)]
    command += ["--processes", str(number), "--set", "mesh.data=0"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Waits for the process, checks its exit code and that no child remains, and returns its stderr."""
    _, said = process.communicate(timeout=900)
    assert process.returncode == code, said[-3000:]
    return said


def child_processes(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not ready():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_same_losses(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    pairs = [(one[key], other[key]) for one, other in zip(ours, theirs, strict=True) for key in other]
    worst = max(abs(one - other) / max(abs(other), 1e-6) for one, other in pairs)
    print(f"largest relative difference of a figure {worst:.1e}")
    assert worst <= 1e-4


@pytest.mark.slow
def test_two_processes_equal_one_process(document, tmp_path):
    short = {**document, "augment": {}, "run": {"length": 4, "log_every": 2, "save_every": 100}}
    two = start_processes(short, tmp_path / "two", 2)
    expected = train_alone(short, tmp_path / "one")
    finish(two)
    check_same_losses(history(tmp_path / "two"), expected)
    assert (tmp_path / "two" / "bundle" / "model.json").exists()


def assert_same_runs(config: TrainConfig, one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    (step, ours), (_, theirs) = state_of(config, one), state_of(config, other)
    assert step == STEPS
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "model"), [(2, 1), (4, 2)])
def test_killed_process_ends_the_run_and_the_run_resumes(document, tmp_path, number, model):
    """The losses equal those of a run with one process.

    If a process is killed, the other processes end within a minute, and the resumed run is identical.
    """
    document = {**document, "mesh": {"model": model}}
    finish(start_processes(document, tmp_path / "whole", number))
    check_same_losses(history(tmp_path / "whole"), train_alone({**document, "mesh": {}}, tmp_path / "one"))
    killed = start_processes(document, tmp_path / "killed", number)
    wait_for(killed, lambda: (tmp_path / "killed" / CHECKPOINTS / "5").exists())
    lost = child_processes(killed)
    os.kill(lost[-1], signal.SIGKILL)
    began = time.monotonic()
    said = finish(killed, 2)
    print(f"ended {time.monotonic() - began:.1f} s after process {number - 1} was killed: {said.splitlines()[-1]}")
    assert time.monotonic() - began < 60
    assert f"process {number - 1} of {number} was killed by SIGKILL; the others were stopped" in said.splitlines()[-1]
    assert not any(Path(f"/proc/{pid}").exists() for pid in lost)
    said = finish(start_processes(document, tmp_path / "killed", number))
    assert "resumed at step 5" in said
    assert_same_runs(build_config({**document, "mesh": {}}), tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step(document, tmp_path):
    """After SIGTERM to the launcher, all processes save the same step and exit with 75; one process resumes the run."""
    often = {"length": 5000, "dev_every": 0, "save_every": 10_000}
    long = {**document, "run": {**document["run"], **often}, "mesh": {"model": 2}}
    asked = start_processes(long, tmp_path / "run", 2)
    wait_for(asked, lambda: bool(history(tmp_path / "run")))
    asked.send_signal(signal.SIGTERM)
    said = finish(asked, 75)
    print(said.splitlines()[-1])
    (step,) = (int(path.name) for path in (tmp_path / "run" / CHECKPOINTS).iterdir())
    assert step % 10 == 0
    again = QuietProgress()
    asked_again = iter(range(10**6))
    train_alone = build_config({**long, "mesh": {}})
    assert not train(train_alone, tmp_path / "run", again, lambda: next(asked_again) >= 1).finished
    assert f"resumed at step {step}" in again.notes


@pytest.mark.slow
def test_error_of_one_process_is_reported_once(document, tmp_path):
    wrong = {**document, "run": {**document["run"], "dev_trials": str(tmp_path / "none.txt")}}
    said = finish(start_processes(wrong, tmp_path / "run", 2), 2)
    assert "none.txt" in said
    assert "process 0 of 2 ended with exit code 2" in said.splitlines()[-1] or "process 1 of 2" in said.splitlines()[-1]
