"""Writes PyTorch zip checkpoints without PyTorch; `View` and `Raw` allow malformed ones."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

_STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}


@dataclasses.dataclass(eq=False)
class View:
    """A tensor that is a view of a one-dimensional array. Views of the same array object share a storage.

    Nothing is checked. `numel` is the size of the storage that the pickle states (by default the true one). `options`
    follow the usual arguments of the tensor.
    """

    storage: np.ndarray
    offset: object
    shape: object
    strides: object
    numel: object = None
    options: tuple[object, ...] = ()


@dataclasses.dataclass(eq=False)
class Raw:
    """Opcodes that leave one object on the pickle machine's stack."""

    opcodes: bytes


@dataclasses.dataclass(eq=False)
class Call:
    """The result of a call that the pickle asks the reader to make."""

    module: str
    attribute: str
    args: tuple[object, ...]


def name(module: str, attribute: str) -> Raw:
    """Returns the opcode that loads a module's attribute."""
    return Raw(b"c" + module.encode() + b"\n" + attribute.encode() + b"\n")


def write_torch_zip(
    path: str | os.PathLike[str] | BinaryIO,
    obj: object,
    *,
    prefix: str = "archive/",
    members: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Writes `obj` as `torch.save` would: each array in it becomes a tensor with its own storage.

    The `_metadata` attribute of an OrderedDict is written too. `members` add or replace members of the archive.
    """
    pickler = _Pickler()
    pickler.put(obj)
    records = {"data.pkl": b"\x80\x02" + bytes(pickler.out) + b".", "byteorder": b"little"}
    records |= {f"data/{key}": storage.tobytes() for key, storage in enumerate(pickler.storages)}
    records |= {"version": b"3\n", **(members or {})}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, data in records.items():
            archive.writestr(prefix + member, data)


def torch_zip_bytes(obj: object, **options: Any) -> bytes:
    """Returns the bytes that `write_torch_zip` writes."""
    file = io.BytesIO()
    write_torch_zip(file, obj, **options)
    return file.getvalue()


def torch_legacy_bytes(obj: object, *, keys: object = None, system: object = None) -> bytes:
    """Returns `obj` as PyTorch before 1.6 wrote it; `keys` and `system` replace two of the leading pickles."""
    pickler = _Pickler()
    pickler.put(obj)
    counts = [np.array(storage.size, "<i8").tobytes() + storage.tobytes() for storage in pickler.storages]
    names = [str(key) for key in range(len(counts))] if keys is None else keys
    described = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    first = (0x1950A86A20F9469CFC6C, 1001, described if system is None else system)
    parts = [*map(_pickled, first), b"\x80\x02" + bytes(pickler.out) + b".", _pickled(names), *counts]
    return b"".join(parts)


def _pickled(node: object) -> bytes:
    pickler = _Pickler()
    pickler.put(node)
    return b"\x80\x02" + bytes(pickler.out) + b"."


def nemo_bytes(
    config: str, obj: object, *, compressed: bool = False, members: Iterable[tuple[tarfile.TarInfo, bytes]] = ()
) -> bytes:
    """Returns a `.nemo` archive as NeMo writes it; `members` follow the two usual members."""
    file = io.BytesIO()
    files = [("./model_config.yaml", config.encode()), ("./model_weights.ckpt", torch_zip_bytes(obj))]
    with tarfile.open(fileobj=file, mode="w:gz" if compressed else "w") as archive:
        folder = tarfile.TarInfo(".")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for path, data in files:
            info = tarfile.TarInfo(path)
            info.size, info.mtime = len(data), 1700000000.25  # a fractional time needs an extended header
            archive.addfile(info, io.BytesIO(data))
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


class _Pickler:
    def __init__(self) -> None:
        self.out = bytearray()
        self.storages: list[np.ndarray] = []

    def put(self, node: object) -> None:
        out = self.out
        if node is None or isinstance(node, bool):
            out += {None: b"N", True: b"\x88", False: b"\x89"}[node]
        elif isinstance(node, int):
            self._put_int(node)
        elif isinstance(node, float):
            out += b"G" + struct.pack(">d", node)
        elif isinstance(node, str):
            text = node.encode()
            out += b"X" + struct.pack("<I", len(text)) + text
        elif isinstance(node, bytes):
            out += b"B" + struct.pack("<I", len(node)) + node
        elif isinstance(node, tuple):
            self._put_items(b"(", node, b"t")
        elif isinstance(node, list):
            self._put_items(b"](", node, b"e")
        elif isinstance(node, dict):
            self._put_dict(node)
        elif isinstance(node, np.ndarray):
            strides = tuple(int(np.prod(node.shape[axis + 1 :])) for axis in range(node.ndim))
            self._put_view(View(node.reshape(-1), 0, node.shape, strides))
        elif isinstance(node, View):
            self._put_view(node)
        elif isinstance(node, Call):
            self.put(name(node.module, node.attribute))
            self.put(node.args)
            out += b"R"
        elif isinstance(node, Raw):
            out += node.opcodes
        else:
            raise TypeError(f"no opcodes for {type(node).__name__}")

    def _put_items(self, start: bytes, items: Iterable[object], end: bytes) -> None:
        self.out += start
        for item in items:
            self.put(item)
        self.out += end

    def _put_int(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"\x8a" + bytes([len(data)]) + data

    def _put_dict(self, node: dict) -> None:
        pairs = [part for pair in node.items() for part in pair]
        ordered = isinstance(node, OrderedDict)
        self._put_items(b"ccollections\nOrderedDict\n)R(" if ordered else b"}(", pairs, b"u")
        if hasattr(node, "_metadata"):
            self.put({"_metadata": node._metadata})
            self.out += b"b"

    def _put_view(self, view: View) -> None:
        keys = [key for key, storage in enumerate(self.storages) if storage is view.storage]
        if not keys:
            self.storages.append(view.storage)
        key = keys[0] if keys else len(self.storages) - 1
        numel = view.storage.size if view.numel is None else view.numel
        kind = name("torch", _STORAGES[view.storage.dtype])
        self.put(name("torch._utils", "_rebuild_tensor_v2"))
        self.out += b"("
        self.put(("storage", kind, str(key), "cpu", numel))
        self.out += b"Q"
        for part in (view.offset, view.shape, view.strides, False, OrderedDict(), *view.options):
            self.put(part)
        self.out += b"tR"
