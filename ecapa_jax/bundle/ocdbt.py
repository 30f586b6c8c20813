"""An Orbax checkpoint's arrays, read with TensorStore itself: a command need not wait until Orbax is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

_ARRAYS = ("np.ndarray", "jax.Array")
_EMPTY = "Dict"
_DICT_KEY = 2


class OtherLayoutError(Exception):
    """A checkpoint is not laid out as Orbax's default handler of trees does it."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a checkpoint by their names, keys joined by slashes.

    Reference: `orbax.checkpoint._src.metadata.tree` for `_METADATA`; one zarr array a leaf, in an OCDBT database.

    Raises:
      OtherLayoutError: Orbax must read it.
      ValueError, OSError, KeyError, TypeError: it is damaged.
    """
    import tensorstore

    metadata = json.loads((path / "_METADATA").read_text("utf-8"))
    if not metadata["use_ocdbt"] or metadata["use_zarr3"]:
        raise OtherLayoutError
    base, context = f"file://{path.absolute()}/", tensorstore.Context()
    opened = {}
    for keys, kind in map(_leaf, metadata["tree_metadata"].values()):
        if kind in _ARRAYS:
            store = {"driver": "ocdbt", "base": base, "path": ".".join(keys) + "/"}
            spec = {"driver": "zarr", "kvstore": store}
            opened["/".join(keys)] = tensorstore.open(spec, read=True, open=True, context=context)
        elif kind != _EMPTY:
            raise OtherLayoutError
    read = {name: array.result().read() for name, array in opened.items()}
    return {name: np.asarray(array.result()) for name, array in read.items()}


def _leaf(leaf: dict[str, Any]) -> tuple[list[str], str]:
    """Keys and type."""
    if any(key["key_type"] != _DICT_KEY for key in leaf["key_metadata"]):
        raise OtherLayoutError
    return [key["key"] for key in leaf["key_metadata"]], leaf["value_metadata"]["value_type"]
