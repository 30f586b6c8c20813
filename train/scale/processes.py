"""Agreement between the processes of a run. With one process everything here is immediate."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ecapa_jax.errors import EcapaError, TrainingError

MESSAGE_BYTES = 4096


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def any_process(here: bool) -> bool:
    """Whether it holds in any process; every process must ask."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(here))))


def on_first(action: Callable[[], Any]) -> Any:
    """What the first process's `action` returns, in every process; every process must call this.

    Args:
      action: returns something that JSON can hold in 4 kB.

    Raises:
      EcapaError: what the action raised, in the first process; elsewhere a TrainingError with the same message, so that
        no process waits for one that has ended.
    """
    if jax.process_count() == 1:
        return json.loads(json.dumps(action()))  # as it would arrive in the others
    outcome: dict[str, Any] = {}
    failed: EcapaError | None = None
    if is_first():
        try:
            outcome = {"result": action()}
        except EcapaError as error:
            failed, outcome = error, {"error": str(error)[:2000]}
    told = _broadcast(outcome)
    if failed is not None:
        raise failed
    if "error" in told:
        raise TrainingError(told["error"])
    return told["result"]


@contextlib.contextmanager
def processes_told() -> Iterator[None]:
    """Turns what JAX raises when a message to another process fails into one line.

    Raises:
      TrainingError: another process of the run does not answer.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise TrainingError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one, or could not go on "
            f"({str(error).splitlines()[0][:200]}): when all have ended, run the same command to go on from the newest "
            "checkpoint"
        ) from error


def _broadcast(message: dict[str, Any]) -> dict[str, Any]:
    from jax.experimental import multihost_utils

    text = json.dumps(message).encode().ljust(MESSAGE_BYTES)
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    return json.loads(np.asarray(told).tobytes())
