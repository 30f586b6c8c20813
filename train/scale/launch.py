"""Starts, watches and stops several processes of one run on one machine."""

from __future__ import annotations

import contextlib
import math
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ecapa_jax.errors import Stopped, TrainingError
from ecapa_jax.runtime.machine import launched_environment

OWN_SECONDS, STOP_SECONDS, SAVE_SECONDS = 5.0, 10.0, 300.0
"""When a process has died: how long the others may take to end by themselves, and then after SIGTERM. When all should
stop: how long they may take to save."""

STOPPED = 75


def launch(command: list[str], n_processes: int, stop: Callable[[], bool]) -> None:
    """Runs a command as several processes until all have ended; flags tell each process its place in the run.

    The first process writes to this terminal. The output of another process is only shown if it fails.

    Args:
      command: the command without `--coordinator`, `--process-count` and `--process-index`.
      n_processes: number of processes.
      stop: called repeatedly; when it returns True, all processes receive SIGTERM once and end after saving.

    Raises:
      TrainingError: a process has died; the others are then stopped.
      Stopped: the processes ended because they were asked to.
    """
    with tempfile.TemporaryDirectory(prefix="ecapa-jax-") as folder, contextlib.ExitStack() as held:
        place = ["--coordinator", f"127.0.0.1:{_free_port()}", "--process-count", str(n_processes)]
        children = []
        for index in range(n_processes):
            log = None if index == 0 else held.enter_context((Path(folder) / f"{index}.log").open("wb"))
            child = subprocess.Popen(
                [*command, *place, "--process-index", str(index)],
                stdout=None if index == 0 else subprocess.DEVNULL,
                stderr=log,
                env=launched_environment(),
                start_new_session=True,  # Ctrl-C must reach only this process, which passes it on
            )
            children.append(child)
            held.callback(_end, [child])
        lost = _wait_for_loss(children, stop)
        if lost is not None:
            _wait(children, OWN_SECONDS)
            _end(children)
            raise TrainingError(_explain_loss(children, lost, Path(folder)))
    if any(child.returncode == STOPPED for child in children):
        raise Stopped(f"stopped, all {n_processes} processes; run the same command again to continue")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_for_loss(children: list[subprocess.Popen[bytes]], stop: Callable[[], bool]) -> int | None:
    """Waits for all processes; returns the index of the first that failed, if any."""
    deadline = math.inf
    while True:
        codes = [child.poll() for child in children]
        bad = [index for index, code in enumerate(codes) if code not in (None, 0, STOPPED)]
        if bad:
            # A killed process has a negative code and comes before those that failed because of it.
            return min(bad, key=lambda index: codes[index] or 0)
        if all(code is not None for code in codes):
            return None
        if time.monotonic() > deadline:
            _end(children)
            raise Stopped(
                f"the run did not save within {SAVE_SECONDS:.0f} s of the request to stop and was ended: earlier "
                "checkpoints are kept"
            )
        if deadline == math.inf and stop():
            deadline = time.monotonic() + SAVE_SECONDS
            for child in _find_running(children):
                child.send_signal(signal.SIGTERM)
        time.sleep(0.1)


def _find_running(children: list[subprocess.Popen[bytes]]) -> Iterator[subprocess.Popen[bytes]]:
    return (child for child in children if child.poll() is None)


def _wait(children: list[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_find_running(children)):
        time.sleep(0.05)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Sends SIGTERM, and later SIGKILL to processes that still wait for a process that is gone."""
    for child in _find_running(children):
        child.terminate()
    _wait(children, STOP_SECONDS)
    for child in _find_running(children):
        child.kill()
        child.wait()


def _explain_loss(children: list[subprocess.Popen[bytes]], lost: int, folder: Path) -> str:
    code = children[lost].returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    why = ""
    if lost and (lines := (folder / f"{lost}.log").read_text("utf-8", "replace").strip().splitlines()):
        why = f" ({lines[-1].removeprefix('ecapa-jax: ')[:500]})"
    return (
        f"process {lost} of {len(children)} {how}{why}; the others were stopped: run the same command again to "
        "continue from the newest checkpoint"
    )
