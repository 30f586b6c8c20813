"""Reads the arrays of an Orbax checkpoint with TensorStore, because importing Orbax takes long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

_ARRAYS = ("np.ndarray", "jax.Array")
_EMPTY = "Dict"
_DICT_KEY = 2


class OtherLayoutError(Exception):
    """A checkpoint does not have the layout of Orbax's default handler of trees."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays in a checkpoint; a name is the keys of a leaf, joined by slashes.

    Reference: `orbax.checkpoint._src.metadata.tree` for `_METADATA`; each leaf is a zarr array in an OCDBT database.

    Raises:
      OtherLayoutError: only Orbax can read this layout.
      ValueError, OSError, KeyError, TypeError: the checkpoint is damaged.
    """
    import tensorstore

    metadata = json.loads((path / "_METADATA").read_text("utf-8"))
    if not metadata["use_ocdbt"] or metadata["use_zarr3"]:
        raise OtherLayoutError
    base, context = f"file://{path.absolute()}/", tensorstore.Context()
    opened = {}
    for keys, kind in map(_parse_leaf, metadata["tree_metadata"].values()):
        if kind in _ARRAYS:
            store = {"driver": "ocdbt", "base": base, "path": ".".join(keys) + "/"}
            spec = {"driver": "zarr", "kvstore": store}
            opened["/".join(keys)] = tensorstore.open(spec, read=True, open=True, context=context)
        elif kind != _EMPTY:
            raise OtherLayoutError
    read = {name: array.result().read() for name, array in opened.items()}
    return {name: np.asarray(array.result()) for name, array in read.items()}


def _parse_leaf(leaf: dict[str, Any]) -> tuple[list[str], str]:
    """Returns the keys and the type of a leaf."""
    if any(key["key_type"] != _DICT_KEY for key in leaf["key_metadata"]):
        raise OtherLayoutError
    return [key["key"] for key in leaf["key_metadata"]], leaf["value_metadata"]["value_type"]
