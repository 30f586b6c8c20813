"""Checkpoints of a training run: written in the background; the newest and the best are kept, damaged ones skipped."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax.bundle.checkpoint import first_line, lacking_room, no_log
from ecapa_jax.errors import BundleError

BY_ROW = "'centres'"
"""Part of the name of arrays with one row per speaker, which may be sharded and padded with rows of zeros."""


class RunCheckpoints:
    """The checkpoints in a directory; a context manager.

    A checkpoint holds a state (a pytree of arrays) and a document (JSON). The document contains a digest of the state:
    a restored state is equal to the saved one in every bit, or is refused. A state may be sharded over the devices of
    several processes, which must all call the same methods; any other number of processes can restore it.

    Args:
      directory: folder of the checkpoints; made if it doesn't exist.
      keep: number of newest checkpoints to keep; the checkpoint with the lowest `dev_eer` is kept too.
    """

    def __init__(self, directory: Path, keep: int):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        best = policies.BestN(get_metric_fn=_negate_eer, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_negate_eer,  # without it metrics are not saved, and a resumed run forgets its best checkpoint
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
        self._quiet.enter_context(no_log())  # threads of Orbax log the errors that `save` and `wait` raise
        return self

    def __exit__(self, *_: object) -> None:
        # `save` or `wait` has raised any error of the background thread.
        with self._quiet, contextlib.suppress(Exception):
            self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, oldest first."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the lowest `dev_eer`; None if no checkpoint has a `dev_eer`."""
        self._manager.reload()
        return self._manager.best_step()

    def save(self, step: int, state: Any, document: dict[str, Any]) -> None:
        """Saves in the background, after any earlier save is done.

        Raises:
          BundleError: this save or the previous one failed, for example on a full disk. Earlier checkpoints remain.
        """
        args = self._ocp.args
        document = {**document, "digest": _compute_digest(state)}
        metrics = {"dev_eer": document["dev_eer"]} if document.get("dev_eer") is not None else None
        items = args.Composite(state=args.StandardSave(state), document=args.JsonSave(document))
        self.wait()
        with _report_failure(f"the checkpoint of step {step}"):
            # If one of several processes stopped here, the others would wait for it in Orbax.
            if jax.process_count() == 1 and (missing := lacking_room(Path(self._manager.directory), state)):
                raise BundleError(missing)
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises:
          BundleError: the save failed.
        """
        with _report_failure("the last checkpoint"):
            self._manager.wait_until_finished()

    def restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """Restores the state and document of a step, with the shapes, dtypes and shardings of `abstract`.

        Arrays under `BY_ROW` may have more or fewer rows of zeros at their end than the saved arrays.

        Raises:
          BundleError: the checkpoint is damaged or does not fit.
        """
        args = self._ocp.args
        items = args.Composite(state=args.StandardRestore(abstract, strict=False), document=args.JsonRestore())
        failure: Exception | None = None
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # orbax and tensorstore raise many types for a damaged directory
            failure = error
        if _is_true_anywhere(failure is not None):
            reason = first_line(failure) if failure else "by another process"
            raise BundleError(f"the checkpoint of step {step} can't be read ({reason})") from failure
        document, state = restored["document"], restored["state"]
        # Checkpoints from before states could be sharded have the sha256 of all bytes.
        digest, saved = (_compute_old_digest, "sha256") if "sha256" in document else (_compute_digest, "digest")
        if document.pop(saved, None) != digest(state):
            raise BundleError(f"the checkpoint of step {step} is damaged (its digest differs)")
        return state, document

    def newest(self, abstract: Any, *, remove: bool = True) -> tuple[tuple[int, Any, dict[str, Any]] | None, list[str]]:
        """Restores the newest undamaged checkpoint as (step, state, document); also says what is wrong with newer ones.

        If `remove`, damaged checkpoints are removed, because the run will write these steps again.
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


def _negate_eer(metrics: dict[str, float]) -> float:
    return -metrics["dev_eer"]


@contextlib.contextmanager
def _report_failure(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise BundleError(
            f"{what} can't be written ({first_line(error)}); earlier checkpoints remain: free space and run again"
        ) from error


def _is_true_anywhere(here: bool) -> bool:
    """Whether `here` is True in any process of the run; all processes must go on with the same checkpoint."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(here))))


def _compute_digest(state: Any) -> str:
    """Computes a digest of all leaves, their names and dtypes, which does not depend on how the state is sharded."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    names = sorted(leaves)
    rows = np.array([_sum_row_digests(leaves[name]) if BY_ROW in name else [0] * 8 for name in names], np.uint32)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        parts = [_to_int(row) for part in multihost_utils.process_allgather(rows) for row in part]
        sums = [sum(parts[index :: len(names)]) % 2**256 for index in range(len(names))]
    else:
        sums = [_to_int(row) for row in rows]
    digest = hashlib.sha256()
    for name, total in zip(names, sums, strict=True):
        whole = b"" if BY_ROW in name else np.ascontiguousarray(leaves[name]).tobytes()
        digest.update(json.dumps([name, np.dtype(leaves[name].dtype).name, total]).encode() + whole)
    return digest.hexdigest()


def _compute_old_digest(state: Any) -> str:
    digest = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    for name, leaf in sorted(leaves.items()):
        array = np.asarray(leaf)
        digest.update(json.dumps([name, array.shape, array.dtype.name]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _to_int(row: np.ndarray) -> int:
    return int.from_bytes(row.tobytes(), "little")


def _sum_row_digests(leaf: Any) -> np.ndarray:
    """Sums the sha256 of each row and its position, as eight 32-bit words; rows of zeros add nothing.

    Only the rows of this process are summed.
    """
    total = 0
    for shard in leaf.addressable_shards if isinstance(leaf, jax.Array) else ():
        if shard.replica_id:
            continue
        rows = np.ascontiguousarray(shard.data)
        first = (shard.index[0].start or 0) if rows.ndim else 0
        for place, row in enumerate(np.atleast_1d(rows)):
            if row.any():
                total += int.from_bytes(hashlib.sha256((first + place).to_bytes(8, "little") + row.tobytes()).digest())
    return np.frombuffer((total % 2**256).to_bytes(32, "little"), np.uint32)
