"""Builds arrays from the views of a pickle machine after checking them, and makes error messages for all readers."""

from __future__ import annotations

import contextlib
import gzip
import math
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from ecapa_jax.convert.readers.pickle_machine import SCALARS, Global, Storage, View, is_not_weight, show
from ecapa_jax.errors import ConversionError

_MAX_DEPTH = 64

# Exceptions that the parsers of the standard library and NumPy raise on damaged input.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    SyntaxError,
)


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turns any exception of a parser on a damaged file into a one-line ConversionError that starts with `name`.

    Raises:
      ConversionError: the body failed on the file.
    """
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"{name}: {error}") from None
    except MemoryError as error:
        raise ConversionError(f"{name}: it needs more memory than there is") from error
    except _DAMAGE as error:
        reason = show(str(error) or type(error).__name__)
        raise ConversionError(f"{name}: it is damaged or cut off ({reason}); download or save it again") from error
    except OSError as error:
        raise ConversionError(f"{name}: it can't be read: {error.strerror or error}") from error


def check_bool(array: np.ndarray) -> np.ndarray:
    """Checks that the bytes of a bool array are 0 or 1, which NumPy relies on without checking, and returns the array.

    Raises:
      ConversionError: a bool array holds another byte.
    """
    if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
        raise ConversionError("a bool tensor holds bytes other than 0 and 1; the file is damaged")
    return array


class TreeBuilder:
    """Builder that replaces each `View` in a tree by a read-only array. It reads a storage once, at the first use.

    Args:
      read: function that returns the bytes of a storage; their number is the number that the storage claims.
      max_bytes: limit on the total size of all tensors.
    """

    def __init__(self, read: Callable[[Storage], bytes], max_bytes: int) -> None:
        self._read = read
        self._max_bytes = max_bytes
        self._total = 0
        self._storages: dict[str, bytes] = {}
        self._built: dict[int, object] = {}  # by id, so that an object that occurs often in the tree is built once

    def build(self, node: object, depth: int = 0) -> object:
        """Builds the tree below `node` with arrays in place of views."""
        if isinstance(node, SCALARS):
            return node
        if id(node) not in self._built:
            if depth >= _MAX_DEPTH:
                raise ConversionError("its containers contain each other or are nested too deeply for weights")
            self._built[id(node)] = self._build_container(node, depth)
        return self._built[id(node)]

    def _build_container(self, node: object, depth: int) -> object:
        if isinstance(node, View):
            return self._build_array(node)
        if isinstance(node, dict):
            kept = {key: value for key, value in node.items() if not is_not_weight(value)}
            return type(node)((key, self.build(value, depth + 1)) for key, value in kept.items())
        if isinstance(node, list | tuple):
            return type(node)([None if is_not_weight(item) else self.build(item, depth + 1) for item in node])
        what = node.name if isinstance(node, Global) else "a storage that belongs to no tensor"
        raise ConversionError(f"it holds {what} as a value; save only the state dict")

    def _build_array(self, view: View) -> np.ndarray:
        dtype, shape = view.storage.dtype, view.shape
        count = math.prod(shape)
        end = view.offset + sum((dim - 1) * stride for dim, stride in zip(shape, view.strides, strict=True)) + 1
        if count and end > view.storage.numel:
            raise ConversionError("a tensor extends beyond its storage; the file is damaged or malicious")
        self._total += count * dtype.itemsize
        if self._total > self._max_bytes:
            raise ConversionError(
                f"its tensors claim over {self._max_bytes} bytes, far more than the file holds; it is malicious"
            )
        array = check_bool(self._copy_view(view)) if count else np.empty(shape, dtype)
        array.flags.writeable = False
        return array

    def _copy_view(self, view: View) -> np.ndarray:
        dtype, shape = view.storage.dtype, view.shape
        # The stride of an axis of length 1 is never used and may have any value.
        strides = [stride * dtype.itemsize if dim > 1 else 0 for dim, stride in zip(shape, view.strides, strict=True)]
        offset = view.offset * dtype.itemsize
        return np.asarray(np.ndarray(shape, dtype, self._read_storage(view.storage), offset, strides), order="C")

    def _read_storage(self, storage: Storage) -> bytes:
        if storage.key not in self._storages:
            self._storages[storage.key] = self._read(storage)
        raw = self._storages[storage.key]
        if len(raw) != storage.numel * storage.dtype.itemsize:  # another storage has the same key and another size
            raise make_size_error(storage, len(raw))
        return raw


def make_size_error(storage: Storage, found: int) -> ConversionError:
    """Makes the error for a storage whose length differs from the length in the pickle."""
    wanted = storage.numel * storage.dtype.itemsize
    return ConversionError(
        f"storage {show(storage.key)} has {found} bytes but should have {wanted}; the file is damaged"
    )
