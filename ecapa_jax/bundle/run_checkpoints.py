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

from ecapa_jax.bundle.checkpoint import first_line, lacking_room, no_log
from ecapa_jax.errors import BundleError

BY_ROW = "'centres'"
"""In the name of arrays with a row for each speaker, which may be spread over devices and padded with rows of zeros."""


class RunCheckpoints:
    """The checkpoints below one directory; a context manager.

    A checkpoint holds a state (a pytree of arrays) and a document (JSON). The state's digest is in the document: what
    comes back differs from what was saved in no bit, or is refused. A state may be spread over the devices of several
    processes, which all call the same methods; it comes back on any other number of them.

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

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the lowest `dev_eer`; None where none has one."""
        self._manager.reload()
        return self._manager.best_step()

    def save(self, step: int, state: Any, document: dict[str, Any]) -> None:
        """Saves in the background, after any earlier save is done.

        Raises:
          BundleError: this save, or the one before, failed: a full disk, for one. Earlier checkpoints stand.
        """
        args = self._ocp.args
        document = {**document, "digest": _digest(state)}
        metrics = {"dev_eer": document["dev_eer"]} if document.get("dev_eer") is not None else None
        items = args.Composite(state=args.StandardSave(state), document=args.JsonSave(document))
        self.wait()
        with _reported(f"the checkpoint of step {step}"):
            # Of several processes, one that stops here would leave the others waiting in Orbax.
            if jax.process_count() == 1 and (missing := lacking_room(Path(self._manager.directory), state)):
                raise BundleError(missing)
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

        Arrays under `BY_ROW` may have more or fewer rows of zeros at their end than were saved.

        Raises:
          BundleError: it is damaged or does not fit.
        """
        args = self._ocp.args
        items = args.Composite(state=args.StandardRestore(abstract, strict=False), document=args.JsonRestore())
        failure: Exception | None = None
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # orbax and tensorstore raise many types for a damaged directory
            failure = error
        if _in_any_process(failure is not None):
            reason = first_line(failure) if failure else "by another process"
            raise BundleError(f"the checkpoint of step {step} can't be read ({reason})") from failure
        document, state = restored["document"], restored["state"]
        # Until it could be spread over processes, a state had the sha256 of all its bytes.
        digest, saved = (_sha256, "sha256") if "sha256" in document else (_digest, "digest")
        if document.pop(saved, None) != digest(state):
            raise BundleError(f"the checkpoint of step {step} is damaged (its digest differs)")
        return state, document

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


def _in_any_process(here: bool) -> bool:
    """Whether it holds in one of a run's processes, which must all go on with the same checkpoint."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(here))))


def _digest(state: Any) -> str:
    """Of every leaf, its name and dtype: the same however the state is spread over devices and processes."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    names = sorted(leaves)
    rows = np.array([_of_rows(leaves[name]) if BY_ROW in name else [0] * 8 for name in names], np.uint32)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        parts = [_number(row) for part in multihost_utils.process_allgather(rows) for row in part]
        sums = [sum(parts[index :: len(names)]) % 2**256 for index in range(len(names))]
    else:
        sums = [_number(row) for row in rows]
    digest = hashlib.sha256()
    for name, total in zip(names, sums, strict=True):
        whole = b"" if BY_ROW in name else np.ascontiguousarray(leaves[name]).tobytes()
        digest.update(json.dumps([name, np.dtype(leaves[name].dtype).name, total]).encode() + whole)
    return digest.hexdigest()


def _sha256(state: Any) -> str:
    digest = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    for name, leaf in sorted(leaves.items()):
        array = np.asarray(leaf)
        digest.update(json.dumps([name, array.shape, array.dtype.name]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _number(row: np.ndarray) -> int:
    return int.from_bytes(row.tobytes(), "little")


def _of_rows(leaf: Any) -> np.ndarray:
    """Sum of the sha256 of this process's rows with their places, as eight 32-bit words; rows of zeros add nothing."""
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
