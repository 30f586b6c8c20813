"""PyTorch's zip checkpoints (torch.save since 1.6), read without PyTorch and without running anything in them.

A checkpoint is a pickle, `data.pkl`, beside one raw file for each storage. `pickle_machine` turns the pickle into
containers and descriptions of tensors; arrays are made here in a second pass, once what each of them claims is checked.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from ecapa_jax.convert.pickle_machine import SCALARS, Global, PickleMachine, Storage, View, show
from ecapa_jax.errors import ConversionError

_MAX_PICKLE = 64 << 20
_MAX_DEPTH = 64

# What zipfile, pickletools and numpy raise on damaged input.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    NotImplementedError,
)


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turns whatever a damaged file makes the parsers raise into a one-line ConversionError that starts with `name`.

    Raises:
      ConversionError: the body failed on the file.
    """
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"{name}: {error}") from None
    except OSError as error:
        raise ConversionError(f"{name}: it can't be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise ConversionError(f"{name}: it needs more memory than there is") from error
    except _DAMAGE as error:
        reason = show(str(error) or type(error).__name__)
        raise ConversionError(f"{name}: it is damaged or cut off ({reason}); download or save it again") from error


def check_bool(array: np.ndarray) -> np.ndarray:
    """The array itself. A bool array's bytes must be 0 or 1: NumPy takes that for granted and goes wrong elsewhere.

    Raises:
      ConversionError: a bool array holds another byte.
    """
    if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
        raise ConversionError("a bool tensor holds bytes other than 0 and 1; the file is damaged")
    return array


def read_torch_zip(file: io.BufferedReader | io.BytesIO, name: str, *, max_bytes: int | None = None) -> object:
    """Reads a zip checkpoint: dicts, OrderedDicts, lists, tuples, scalars, strings and bytes, with arrays for tensors.

    Arrays are read-only and have the file's dtypes (bfloat16 is that of ml_dtypes).

    Args:
      file: seekable; left open.
      name: what error messages call the file.
      max_bytes: limit on the size of all tensors together, as a small file can claim any; by default four times the
        file and 64 MiB.

    Raises:
      ConversionError: the file is not such a checkpoint, is damaged, names anything but tensors and plain containers,
        or holds more than `max_bytes` of tensors.
    """
    with one_line_errors(name):
        size = file.seek(0, os.SEEK_END)
        limit = 4 * size + (64 << 20) if max_bytes is None else max_bytes
        with zipfile.ZipFile(file) as archive:
            prefix = _check_members(archive, size)
            tree = PickleMachine().run(archive.read(f"{prefix}data.pkl"))
            return _Builder(archive, prefix, limit).build(tree)


def _check_members(archive: zipfile.ZipFile, size: int) -> str:
    """The archive's top folder with a slash, once each of its members is known to be what it says."""
    members = archive.infolist()
    names = [member.filename for member in members]
    pickles = [name for name in names if name == "data.pkl" or (name.count("/") == 1 and name.endswith("/data.pkl"))]
    if len(pickles) != 1 or len(set(names)) != len(names):
        raise ConversionError(_describe(names))
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in names or any(name.startswith(f"{prefix}code/") for name in names):
        raise ConversionError(
            "it is a TorchScript archive, which is a program; save the weights with "
            "torch.save(torch.jit.load(f).state_dict(), f2)"
        )
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ConversionError(f"{show(member.filename)} is compressed; PyTorch never does that: save it again")
    if sum(member.file_size for member in members) > size:
        raise ConversionError("its members claim more bytes than the file has; it is damaged or made to mislead")
    if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE:
        raise ConversionError(f"data.pkl is over {_MAX_PICKLE >> 20} MiB; save the state dict alone")
    if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
        raise ConversionError("it is not little-endian; save it again on a little-endian machine")
    return prefix


def _describe(names: list[str]) -> str:
    if len(set(names)) != len(names):
        return "it is a zip archive with two members of the same name; it is damaged or made to mislead"
    if names and all(name.endswith(".npy") for name in names):
        return "it is a NumPy .npz archive; save the weights with torch.save or safetensors"
    found = ", ".join(show(name) for name in names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"
    return f"it is a zip archive but no PyTorch checkpoint (no single data.pkl; it holds {found}); unpack it first"


class _Builder:
    """Replaces each `View` of the machine's tree by an array, reading each storage once, when first needed."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str, max_bytes: int) -> None:
        self._archive = archive
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._total = 0
        self._storages: dict[str, bytes] = {}
        self._built: dict[int, object] = {}  # by id: an object named many times in the tree is built once

    def build(self, node: object, depth: int = 0) -> object:
        """The tree below `node`, with arrays."""
        if isinstance(node, SCALARS):
            return node
        if id(node) not in self._built:
            if depth >= _MAX_DEPTH:
                raise ConversionError("its containers hold each other or are nested too deep for weights")
            self._built[id(node)] = self._container(node, depth)
        return self._built[id(node)]

    def _container(self, node: object, depth: int) -> object:
        if isinstance(node, View):
            return self._array(node)
        if isinstance(node, dict):
            return type(node)((key, self.build(value, depth + 1)) for key, value in node.items())
        if isinstance(node, list | tuple):
            return type(node)([self.build(item, depth + 1) for item in node])
        what = node.name if isinstance(node, Global) else "a storage that belongs to no tensor"
        raise ConversionError(f"it holds {what} as a value; save the state dict alone")

    def _array(self, view: View) -> np.ndarray:
        dtype, shape = view.storage.dtype, view.shape
        count = math.prod(shape)
        end = view.offset + sum((dim - 1) * stride for dim, stride in zip(shape, view.strides, strict=True)) + 1
        if count and end > view.storage.numel:
            raise ConversionError("a tensor reaches beyond its storage; the file is damaged or made to mislead")
        self._total += count * dtype.itemsize
        if self._total > self._max_bytes:
            raise ConversionError(
                f"its tensors claim over {self._max_bytes} bytes, far more than the file holds; it is made to mislead"
            )
        array = check_bool(self._strided(view)) if count else np.empty(shape, dtype)
        array.flags.writeable = False
        return array

    def _strided(self, view: View) -> np.ndarray:
        dtype, shape = view.storage.dtype, view.shape
        # The stride of an axis of length 1 is never taken and may be anything.
        strides = [stride * dtype.itemsize if dim > 1 else 0 for dim, stride in zip(shape, view.strides, strict=True)]
        offset = view.offset * dtype.itemsize
        return np.asarray(np.ndarray(shape, dtype, self._raw(view.storage), offset, strides), order="C")

    def _raw(self, storage: Storage) -> bytes:
        member = self._archive.getinfo(f"{self._prefix}data/{storage.key}")
        if member.file_size != storage.numel * storage.dtype.itemsize:
            raise ConversionError(
                f"storage {show(storage.key)} has {member.file_size} bytes but should have "
                f"{storage.numel * storage.dtype.itemsize}; the file is damaged"
            )
        if storage.key not in self._storages:
            self._storages[storage.key] = self._archive.read(member)
        return self._storages[storage.key]
