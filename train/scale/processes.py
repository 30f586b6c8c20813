"""Makes the processes of a run agree. With one process, all functions return at once."""

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
    """Whether this is the first process, which writes the files of the run."""
    return jax.process_index() == 0


def any_process(here: bool) -> bool:
    """Whether `here` is True in any process; every process must call this."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(here))))


def on_first(action: Callable[[], Any]) -> Any:
    """Runs `action` in the first process and returns its result in every process; every process must call this.

    Args:
      action: function whose result fits in 4 kB of JSON.

    Raises:
      EcapaError: the action raised it in the first process. Other processes raise a TrainingError with the same
        message, so that no process waits for one that has ended.
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
def explain_lost_processes() -> Iterator[None]:
    """Turns the error of JAX after a failed message to another process into one line.

    Raises:
      TrainingError: another process of the run does not answer.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise TrainingError(
            f"process {jax.process_index()} of {jax.process_count()} lost another process, or could not continue "
            f"({str(error).splitlines()[0][:200]}): when all have ended, run the same command again to "
            "continue from the newest checkpoint"
        ) from error


def _broadcast(message: dict[str, Any]) -> dict[str, Any]:
    from jax.experimental import multihost_utils

    text = json.dumps(message).encode().ljust(MESSAGE_BYTES)
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    return json.loads(np.asarray(told).tobytes())
