"""Writes zip checkpoints of PyTorch without PyTorch; `torch.load(file, weights_only=True)` reads them.

This is the counterpart of `torch_zip`. The pickle is a dict of tensors, optionally inside another dict with one key.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}
_FOLDER = "archive/"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date of zip, so that the same tensors give the same file


def write_torch_zip(file: Path | io.BytesIO, tensors: Mapping[str, np.ndarray], wrapper: str = "") -> None:
    """Writes the same file as `torch.save(state_dict)` or `torch.save({wrapper: state_dict})`.

    Args:
      file: a path, or a file to write to.
      tensors: arrays by name, of a dtype in `STORAGES`; the order is kept.
      wrapper: key of the dict around the tensors; "" for no such dict.
    """
    state = b"".join(
        [_encode_text(name) + _encode_tensor(key, tensor) for key, (name, tensor) in enumerate(tensors.items())]
    )
    content = b"ccollections\nOrderedDict\n)R(" + state + b"u"
    if wrapper:
        content = b"}(" + _encode_text(wrapper) + content + b"u"
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", b"\x80\x02" + content + b".")
        _add(archive, "byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            flat = np.ascontiguousarray(tensor).reshape(-1)
            _add(archive, f"data/{key}", flat.view(np.uint8).data)
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    archive.writestr(zipfile.ZipInfo(_FOLDER + name, _EPOCH), data)


def _encode_tensor(key: int, tensor: np.ndarray) -> bytes:
    """Encodes a call of `torch._utils._rebuild_tensor_v2` on a storage that no other tensor uses."""
    numel = tensor.size
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)]
    storage = (
        b"("
        + _encode_text("storage")
        + _encode_global("torch", STORAGES[tensor.dtype])
        + _encode_text(str(key))
        + _encode_text("cpu")
    )
    return (
        _encode_global("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + (storage + _encode_int(numel) + b"tQ")
        + _encode_int(0)
        + _encode_tuple(tensor.shape)
        + _encode_tuple(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def _encode_global(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def _encode_text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _encode_int(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _encode_tuple(values: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(_encode_int(value) for value in values) + b"t"
