"""Tests of how a process finds the other processes of its run, and of the launcher."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from ecapa_jax.errors import ConfigError, Stopped, TrainingError
from ecapa_jax.runtime.cluster import LAUNCHED, Cluster, find_cluster
from ecapa_jax.train.scale.launch import launch
from helpers.cli import run

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[003-004,007],big1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
GKE = {"TPU_WORKER_HOSTNAMES": "job-0.job,job-1.job", "TPU_WORKER_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, Cluster("Slurm", "node003:61441", 4, 2, 4)),
        ({**SLURM, "SLURM_STEP_NODELIST": "a,b"}, Cluster("Slurm", "a:61441", 4, 2, 4)),
        (
            {**SLURM, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "gpu7", "SLURM_LOCALID": "2"},
            Cluster("Slurm", "gpu7:61441", 4, 2, 1, 2),
        ),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({name: value for name, value in SLURM.items() if "STEP" not in name}, None),
        (GKE, Cluster("GKE", "job-0.job:8482", 2, 1, 2)),
        (
            {**GKE, "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "s-0:80"},
            Cluster("GKE", "s-0:8482", 4, 3, 4),
        ),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        (
            {"JAX_COORDINATOR_ADDRESS": "svc:99", "JAX_NUM_PROCESSES": "3", "JOB_COMPLETION_INDEX": "2"},
            Cluster("JAX_COORDINATOR_ADDRESS", "svc:99", 3, 2, 3),
        ),
        ({}, None),
    ],
)
def test_cluster_is_read_from_the_environment(environment, expected):
    assert find_cluster({"JAX_PLATFORMS": "cpu", **environment}) == expected


def test_flags_override_the_environment_and_must_be_complete():
    assert find_cluster(SLURM, "host:1", 3, 2) == Cluster("flags", "host:1", 3, 2, 3)
    with pytest.raises(ConfigError, match="--process-index must be given too"):
        find_cluster({}, "host:1", 3, None)
    with pytest.raises(ConfigError, match="lies between 0"):
        find_cluster({}, "host:1", 3, 3)


def test_invalid_environment_variable_is_reported():
    with pytest.raises(ConfigError, match=r"'two'.*: correct it, or give --coordinator"):
        find_cluster({**SLURM, "SLURM_PROCID": "two"})


@pytest.mark.parametrize("flags", [("--processes", "0"), ("--processes", "2", "--process-index", "0")])
def test_processes_option_with_cluster_flags_is_refused(capsys, tmp_path, flags):
    result = run(capsys, "train", "smoke", "--out", str(tmp_path / "run"), *flags)
    assert result.code == 2
    assert "sets its address and index" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "address", ["localhost:9", "127.0.0.1:9", "127.1.2.3:9", "[::1]:9", "LOCALHOST:9", "0.0.0.0:9"]
)
def test_loopback_coordinator_is_refused_for_several_machines(address):
    with pytest.raises(ConfigError, match="other machines can't reach the coordinator"):
        find_cluster({}, address, 2, 0)
    with pytest.raises(ConfigError, match=r"\(JAX_COORDINATOR_ADDRESS\)"):
        find_cluster({"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"})
    assert find_cluster({LAUNCHED: "1"}, address, 2, 1) == Cluster("flags", address, 2, 1, 1, 1)
    with pytest.raises(ConfigError, match="Slurm"):
        find_cluster({**SLURM, "SLURM_STEP_NODELIST": "localhost"})


def child_command(text: str) -> list[str]:
    """Returns the command of a process in which `i` is its index."""
    return [sys.executable, "-c", f"import os, signal, sys, time\ni = int(sys.argv[-1])\n{text}"]


def never() -> bool:
    return False


def test_launcher_succeeds_if_all_processes_succeed(tmp_path: Path):
    launch(child_command(f"open(r'{tmp_path}/' + str(i), 'w').write(' '.join(sys.argv[1:]))"), 3, never)
    written = [(tmp_path / str(index)).read_text().split() for index in range(3)]
    assert {tuple(words[:5]) for words in written} == {tuple(written[0][:5])}
    assert written[0][0] == "--coordinator"
    assert written[0][2:4] == ["--process-count", "3"]


def test_launcher_stops_all_processes_if_one_fails(monkeypatch):
    """The other processes are stopped even if they ignore SIGTERM."""
    monkeypatch.setattr("ecapa_jax.train.scale.launch.OWN_SECONDS", 0.5)
    monkeypatch.setattr("ecapa_jax.train.scale.launch.STOP_SECONDS", 0.5)
    began = time.monotonic()
    text = "signal.signal(signal.SIGTERM, signal.SIG_IGN) if i == 0 else None\ntime.sleep(0.5)\n"
    with pytest.raises(TrainingError, match="process 1 of 3 was killed by SIGKILL; the others were stopped: run"):
        launch(child_command(text + "os.kill(os.getpid(), 9) if i == 1 else time.sleep(600)"), 3, never)
    assert time.monotonic() - began < 30


def test_last_output_of_the_failed_process_is_reported():
    with pytest.raises(TrainingError, match=r"process 1 of 2 ended with exit code 2 \(no such file\); the others"):
        launch(
            child_command("print('ecapa-jax: no such file', file=sys.stderr) if i else None\nsys.exit(2 * i)"), 2, never
        )


def test_launcher_forwards_stop_signals():
    asked = iter([False] * 10 + [True] * 10**6)
    with pytest.raises(Stopped, match="all 2 processes"):
        launch(child_command("signal.signal(15, lambda *_: sys.exit(75))\ntime.sleep(600)"), 2, lambda: next(asked))
