"""Variables on disk as an Orbax checkpoint: the only file that imports orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax.errors import BundleError

_COMMIT_NOTE = "commit_success.txt"


def save_variables(path: Path, variables: dict[str, Any]) -> None:
    """Writes a nested dict of arrays to a new directory."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), variables)
        checkpointer.wait_until_finished()
    # It holds the absolute path of the writer's machine and is read on object stores only.
    (path / _COMMIT_NOTE).unlink(missing_ok=True)


def restore_variables(path: Path, abstract: dict[str, Any], sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """Reads a nested dict of arrays in the shapes and dtypes of `abstract`, placed by `sharding`.

    The sharding that the checkpoint was written with plays no part, so any number of devices can read it.

    Raises:
      BundleError: the directory is missing or damaged, or holds other names or shapes, or values that are not finite.
    """
    import orbax.checkpoint as ocp

    if not (path / "_METADATA").is_file():
        raise BundleError(f"{path} is missing or incomplete (no _METADATA): convert the model again")
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            _check_shapes(path, checkpointer.metadata(path.absolute()), abstract)
            variables = checkpointer.restore(path.absolute(), placed)
    except BundleError:
        raise
    except Exception as error:  # orbax and tensorstore raise many types for a damaged directory
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{path} can't be read ({first[:200]}): convert the model again") from error
    _check_finite(path, variables)
    return variables


def _check_shapes(path: Path, metadata: Any, abstract: dict[str, Any]) -> None:
    stored = {_name(keys): tuple(leaf.shape) for keys, leaf in _leaves(metadata.item_metadata)}
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
