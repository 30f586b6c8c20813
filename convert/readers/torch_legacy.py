"""Reads checkpoints of PyTorch before 1.6 (or with `_use_new_zipfile_serialization=False`): five pickles and storages.

Reference: `torch.serialization._legacy_save` (the order of the parts).
"""

from __future__ import annotations

import io
import os

from ecapa_jax.convert.readers.arrays import TreeBuilder, make_size_error, one_line_errors
from ecapa_jax.convert.readers.pickle_machine import MAX_PICKLE, PickleMachine, Storage, View
from ecapa_jax.errors import ConversionError

MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT = 8  # number of bytes before each storage, which contain its length


def read_torch_legacy(file: io.BufferedReader | io.BytesIO, name: str) -> object:
    """Reads a checkpoint of the old format, with the results and limits of `read_torch_zip`.

    Raises:
      ConversionError: the file is not such a checkpoint, is damaged, names anything but tensors and plain containers,
        or claims far more tensors than it has bytes.
    """
    with one_line_errors(name):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = io.BytesIO(file.read(MAX_PICKLE))
        magic, protocol, system, tree, keys = (PickleMachine().run(head) for _ in range(5))
        if magic != MAGIC or protocol != _PROTOCOL:
            raise ConversionError(f"it is of another version of PyTorch's old format ({protocol!r:.40})")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ConversionError("it is not little-endian; save it again on a little-endian machine")
        places = _locate_storages(file, keys, head.tell(), size, _find_storages(tree))

        def read(storage: Storage) -> bytes:
            start, length = places[storage.key]
            if length != storage.numel * storage.dtype.itemsize:
                raise make_size_error(storage, length)
            file.seek(start)
            return file.read(length)

        return TreeBuilder(read, 4 * size + (64 << 20)).build(tree)


def _find_storages(tree: object) -> dict[str, Storage]:
    """Finds every storage that a tensor below `tree` uses; the tree may be cyclic."""
    found: dict[str, Storage] = {}
    seen: set[int] = set()
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, View):
            found[node.storage.key] = node.storage
        elif isinstance(node, dict | list | tuple) and id(node) not in seen:
            seen.add(id(node))
            left.extend(node.values() if isinstance(node, dict) else node)
    return found


def _locate_storages(
    file: io.BufferedReader | io.BytesIO, keys: object, start: int, size: int, storages: dict[str, Storage]
) -> dict[str, tuple[int, int]]:
    """Returns start and bytes of each storage; the file gives the number of elements, and `storages` gives the type."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise ConversionError("its list of storages is not a list of different names; the file is damaged")
    places = {}
    for key in keys:
        if key not in storages:
            raise ConversionError("it holds a storage that belongs to no tensor; save only the state dict")
        file.seek(start)
        length = int.from_bytes(file.read(_COUNT), "little") * storages[key].dtype.itemsize
        start += _COUNT
        if start + length > size:
            raise ConversionError("it ends within a storage, so it is cut off; download or save it again")
        places[key] = (start, length)
        start += length
    return places
