"""Variables on disk as an Orbax checkpoint. Only this file and `run_checkpoints` import orbax."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax.errors import BundleError

_COMMIT_NOTE = "commit_success.txt"
_FILE_SIZE = 4 << 20  # of the files that weights go to, about: orbax holds back what is to go to one


def save_variables(path: Path, variables: dict[str, Any]) -> dict[str, str]:
    """Writes a nested dict of arrays to a new directory.

    Returns:
      The sha256 of every file written, by its path below `path`.

    Raises:
      BundleError: it can't be written: a full disk, for one.
    """
    import orbax.checkpoint as ocp

    try:
        with ocp.Checkpointer(_writer()) as checkpointer, no_log():
            saved = ocp.args.PyTreeSave(variables, ocdbt_target_data_file_size=_FILE_SIZE)
            checkpointer.save(path.absolute(), saved)
    except Exception as error:  # as in restore_variables
        raise BundleError(f"the weights can't be written ({first_line(error)})") from error
    # It holds the absolute path of the writer's machine and is read on object stores only.
    (path / _COMMIT_NOTE).unlink(missing_ok=True)
    return {file.relative_to(path).as_posix(): _sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}


def _writer() -> Any:
    """Orbax's handler of trees, without the copy of all arrays that it makes for whoever changes them meanwhile."""
    import orbax.checkpoint as ocp

    types = ocp.type_handlers
    arrays = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, types.ArrayHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=arrays)


def restore_variables(
    path: Path, abstract: dict[str, Any], sharding: jax.sharding.Sharding, digests: dict[str, str]
) -> dict[str, Any]:
    """Reads a nested dict of arrays in the shapes and dtypes of `abstract`, placed by `sharding`.

    The sharding that the checkpoint was written with plays no part, so any number of devices can read it.

    Args:
      path: the directory.
      abstract: what to restore.
      sharding: of every leaf.
      digests: what `save_variables` returned. A flipped bit in a weight would load cleanly; and a file that orbax finds
        damaged makes it print a traceback for every array in it.

    Raises:
      BundleError: a file is missing or damaged, or the arrays have other names or shapes, or are not finite.
    """
    import orbax.checkpoint as ocp

    for name, digest in digests.items():
        if not (path / name).is_file():
            raise BundleError(f"{path / name} is missing: convert the model again")
        if _sha256(path / name) != digest:
            raise BundleError(f"{path / name} is damaged (its sha256 differs): convert the model again")
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
    try:
        with ocp.StandardCheckpointer() as checkpointer, no_log():
            _check_shapes(path, checkpointer.metadata(path.absolute()).item_metadata, abstract)
            variables = checkpointer.restore(path.absolute(), placed)
    except BundleError:
        raise
    except Exception as error:  # orbax and tensorstore raise many types for a damaged directory
        raise BundleError(f"{path} can't be read ({first_line(error)}): convert the model again") from error
    _check_finite(path, variables)
    return variables


@contextlib.contextmanager
def no_log() -> Iterator[None]:
    """Keeps orbax from logging what is about to be raised in one line."""
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
    """The first line of an error, without what tensorstore adds."""
    first = (str(error).splitlines() or [""])[0].split(" See full TensorStore")[0]
    return first[:200] or type(error).__name__


def _check_shapes(path: Path, metadata: Any, abstract: dict[str, Any]) -> None:
    stored = {_name(keys): tuple(leaf.shape) for keys, leaf in _leaves(metadata)}
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
