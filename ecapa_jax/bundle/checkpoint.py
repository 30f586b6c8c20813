"""Variables on disk as an Orbax checkpoint. Only this file and `run_checkpoints` import orbax."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax.bundle.ocdbt import read_arrays
from ecapa_jax.errors import BundleError

_COMMIT_NOTE = "commit_success.txt"
_FILE_SIZE = 4 << 20  # approximate size of a file of weights; Orbax holds the content of a file in memory
_REMOVALS, _ABSENT = 100, 20  # attempts, 0.05 s apart; and how many consecutive attempts must find nothing


def save_variables(path: Path, variables: dict[str, Any]) -> dict[str, str]:
    """Writes a nested dict of arrays to a new directory.

    Returns:
      The sha256 of every file that was written, by its path below `path`.

    Raises:
      BundleError: the directory can't be written, for example because the disk is full.
    """
    import orbax.checkpoint as ocp

    if missing := lacking_room(path.parent, variables):
        raise BundleError(f"the weights can't be written ({missing})")
    try:
        with ocp.Checkpointer(_make_handler(), multiprocessing_options=_without_barrier()) as checkpointer, no_log():
            saved = ocp.args.PyTreeSave(variables, ocdbt_target_data_file_size=_FILE_SIZE)
            checkpointer.save(path.absolute(), saved)
    except Exception as error:  # as in restore_variables
        _remove_unfinished(path)
        raise BundleError(f"the weights can't be written ({first_line(error)})") from error
    # This file holds an absolute path of this machine, and is only needed on object stores.
    (path / _COMMIT_NOTE).unlink(missing_ok=True)
    return {file.relative_to(path).as_posix(): _sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}


def lacking_room(folder: Path, arrays: Any) -> str:
    """Returns a message if the arrays do not fit on the disk of the folder, otherwise "".

    Check this before saving: when the disk fills up, Orbax prints a traceback for every array that it still writes.
    """
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return ""
    need = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    if not disk.total or disk.free >= need:  # some network file systems report a size of 0
        return ""
    return f"No space left on device: {need / 1e6:.1f} MB are needed, {disk.free / 1e6:.1f} MB are free in {folder}"


def _remove_unfinished(path: Path) -> None:
    """Removes what a failed save left beside `path`, repeatedly until nothing comes back.

    Orbax returns at its first error while other writes go on for a moment, and these make their folders again.
    """
    absent = 0
    for _ in range(_REMOVALS):
        left = list(path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"))
        absent = 0 if left else absent + 1
        if absent == _ABSENT:
            return
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _make_handler() -> Any:
    """Makes Orbax's handler of trees. It does not copy the arrays, because nobody changes them while they are saved."""
    import orbax.checkpoint as ocp

    types = ocp.type_handlers
    arrays = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, types.ArrayHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=arrays, multiprocessing_options=_without_barrier())


def _without_barrier() -> Any:
    """Returns options with which saving and restoring don't wait for the other processes of a run."""
    import orbax.checkpoint as ocp

    here = jax.process_index()
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
    )


def restore_variables(
    path: Path, abstract: dict[str, Any], sharding: jax.sharding.Sharding, digests: dict[str, str]
) -> dict[str, Any]:
    """Reads a nested dict of arrays in the shapes and dtypes of `abstract`, placed by `sharding`.

    The sharding with which the checkpoint was written does not matter, so any number of devices can read it.

    Args:
      path: the directory.
      abstract: shapes and dtypes to restore.
      sharding: sharding of every leaf.
      digests: what `save_variables` returned. They are checked first, because Orbax does not notice a flipped bit in a
        weight, and prints a traceback for every array in a file that it finds damaged.

    Raises:
      BundleError: a file is missing or damaged, the arrays have other names or shapes, or a value is not finite.
    """
    for name, digest in digests.items():
        if not (path / name).is_file():
            raise BundleError(f"{path / name} is missing: convert the model again")
        if _sha256(path / name) != digest:
            raise BundleError(f"{path / name} is damaged (its sha256 differs): convert the model again")
    try:
        arrays = read_arrays(path)
    except Exception:  # the layout differs, or a file is damaged, which Orbax reports
        variables = _restore_with_orbax(path, abstract, sharding)
    else:
        _check_shapes(path, {name: array.shape for name, array in arrays.items()}, abstract)
        variables = jax.device_put(_arrange(arrays, abstract), sharding)
    _check_finite(path, variables)
    return variables


def _arrange(arrays: dict[str, np.ndarray], abstract: dict[str, Any]) -> dict[str, Any]:
    """Arranges the arrays as the tree `abstract`, in its dtypes."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: arrays[_name(keys)].astype(leaf.dtype, copy=False), abstract
    )


def _restore_with_orbax(path: Path, abstract: dict[str, Any], sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """Reads the checkpoint with Orbax."""
    import orbax.checkpoint as ocp

    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=_without_barrier()) as checkpointer, no_log():
            stored = _leaves(checkpointer.metadata(path.absolute()).item_metadata)
            _check_shapes(path, {_name(keys): tuple(leaf.shape) for keys, leaf in stored}, abstract)
            return checkpointer.restore(path.absolute(), placed)
    except BundleError:
        raise
    except Exception as error:  # orbax and tensorstore raise many types for a damaged directory
        raise BundleError(f"{path} can't be read ({first_line(error)}): convert the model again") from error


@contextlib.contextmanager
def no_log() -> Iterator[None]:
    """Keeps Orbax from logging an error that is then raised as one line."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror})") from error


def first_line(error: Exception) -> str:
    """Returns the first line of an error, without what TensorStore appends."""
    first = (str(error).splitlines() or [""])[0].split(" See full TensorStore")[0]
    return first[:200] or type(error).__name__


def _check_shapes(path: Path, stored: dict[str, tuple[int, ...]], abstract: dict[str, Any]) -> None:
    wanted = {_name(keys): tuple(leaf.shape) for keys, leaf in _leaves(abstract)}
    wrong = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    if wrong:
        name = wrong[0]
        raise BundleError(
            f"{path} does not fit model.json: {name} is {stored.get(name, 'missing')}, expected "
            f"{wanted.get(name, 'absent')}{f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''}"
        )


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))


def _name(keys: Any) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in keys)


def _check_finite(path: Path, variables: dict[str, Any]) -> None:
    for keys, leaf in _leaves(variables):
        if not np.isfinite(leaf).all():
            raise BundleError(f"{path}: {_name(keys)} holds NaN or infinity: convert the model again")
