"""Checkpoints of a training run: written in the background, the newest and the best kept, damaged ones passed over."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax.errors import BundleError
from ecapa_jax.io.checkpoint import first_line, no_log


class RunCheckpoints:
    """The checkpoints below one directory; a context manager.

    A checkpoint holds a state (a pytree of arrays) and a document (JSON). The state's sha256 is in the document: what
    comes back differs from what was saved in no bit, or is refused.

    Args:
      directory: made if need be.
      keep: newest checkpoints kept; besides them the best by the document's `dev_eer` stays.
    """

    def __init__(self, directory: Path, keep: int):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        best = policies.BestN(get_metric_fn=_goodness, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_goodness,  # without it metrics are not on disk, and a resumed run forgets which was best
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        self._ocp, self._quiet = ocp, contextlib.ExitStack()
        with no_log():
            self._manager = ocp.CheckpointManager(
                directory.absolute(), options=options, item_names=("state", "document")
            )

    def __enter__(self) -> RunCheckpoints:
        self._quiet.enter_context(no_log())  # its threads log what `save` and `wait` raise
        return self

    def __exit__(self, *_: object) -> None:
        # What went wrong in the background was raised by save or wait.
        with self._quiet, contextlib.suppress(Exception):
            self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, oldest first."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, document: dict[str, Any]) -> None:
        """Saves in the background, after any earlier save is done.

        Raises:
          BundleError: this save, or the one before, failed: a full disk, for one. Earlier checkpoints stand.
        """
        args = self._ocp.args
        document = {**document, "sha256": _digest(state)}
        metrics = {"dev_eer": document["dev_eer"]} if document.get("dev_eer") is not None else None
        items = args.Composite(state=args.StandardSave(state), document=args.JsonSave(document))
        self.wait()
        with _reported(f"the checkpoint of step {step}"):
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises:
          BundleError: it failed.
        """
        with _reported("the last checkpoint"):
            self._manager.wait_until_finished()

    def restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """The state and document of a step, placed as `abstract` says.

        Raises:
          BundleError: it is damaged or does not fit.
        """
        args = self._ocp.args
        items = args.Composite(state=args.StandardRestore(abstract), document=args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # orbax and tensorstore raise many types for a damaged directory
            raise BundleError(f"the checkpoint of step {step} can't be read ({first_line(error)})") from error
        document = restored["document"]
        if document.pop("sha256", None) != _digest(restored["state"]):
            raise BundleError(f"the checkpoint of step {step} is damaged (its sha256 differs)")
        return restored["state"], document

    def newest(self, abstract: Any, *, remove: bool = True) -> tuple[tuple[int, Any, dict[str, Any]] | None, list[str]]:
        """The newest whole checkpoint as (step, state, document), and what is wrong with each newer one.

        With `remove`, damaged checkpoints that are passed over are removed: the run will write these steps again.
        """
        problems: list[str] = []
        for step in reversed(self.steps):
            try:
                return (step, *self.restore(step, abstract)), problems
            except BundleError as error:
                problems.append(str(error))
                if remove:
                    self._manager.delete(step)
        return None, problems


def _goodness(metrics: dict[str, float]) -> float:
    return -metrics["dev_eer"]


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise BundleError(
            f"{what} can't be written ({first_line(error)}); earlier ones stand: free space, run again"
        ) from error


def _digest(state: Any) -> str:
    """Sha256 over every leaf, its name, shape and dtype."""
    digest = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    for name, leaf in sorted(leaves.items()):
        array = np.asarray(leaf)
        digest.update(json.dumps([name, array.shape, array.dtype.name]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
