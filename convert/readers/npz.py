"""Reads NumPy's `.npz` files, which are zip archives of `.npy` files, compressed or not, and unpickles nothing."""

from __future__ import annotations

import io
import math
import os
import re
import zipfile

import numpy as np

from ecapa_jax.convert.readers.arrays import check_bool, one_line_errors
from ecapa_jax.convert.readers.pickle_machine import show
from ecapa_jax.convert.readers.torch_zip import check_entries
from ecapa_jax.errors import ConversionError

_MAX_HEADER = 10_000
_CHUNK = 1 << 20
_HEADER = re.compile(
    r"\{'descr': '([<>=|]?[a-zA-Z]\d{1,2})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,18}(?:, ?|(?=\)))){0,32})\), \}\s*"
)


def read_npz(file: io.BufferedReader | io.BytesIO, name: str) -> dict[str, np.ndarray]:
    """Reads the arrays as read-only arrays, by their names in the archive without `.npy`.

    Raises:
      ConversionError: the file is damaged, holds anything but plain little-endian arrays, or unpacks to more than four
        times its size and 64 MiB.
    """
    with one_line_errors(name):
        size = file.seek(0, os.SEEK_END)
        check_entries(file)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                raise ConversionError("it holds two members of the same name; it is damaged or malicious")
            if sum(member.file_size for member in members) > 4 * size + (64 << 20):
                raise ConversionError("its members claim far more bytes than the file has; it is malicious")
            return {member.filename.removesuffix(".npy"): _read_member(archive, member) for member in members}


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    shown = show(member.filename)
    with archive.open(member) as stream:
        shape, fortran, dtype, start = _parse_header(stream.read(_MAX_HEADER + 12))
    if dtype.kind not in "fiub" or dtype.byteorder == ">":
        raise ConversionError(f"{shown} is of type {show(str(dtype))}, which weights don't need; save it as float32")
    left = member.file_size - start
    if math.prod(shape) * dtype.itemsize != left:
        raise ConversionError(f"{shown} has {left} bytes, which don't fit its shape {show(str(shape))}; it is damaged")
    data = np.empty(left, np.uint8)
    with archive.open(member) as stream:
        stream.read(start)
        for at in range(0, left, _CHUNK):
            part = stream.read(min(_CHUNK, left - at))
            if len(part) != min(_CHUNK, left - at):
                raise ConversionError(f"{shown} is cut off; download or save the file again")
            data[at : at + len(part)] = np.frombuffer(part, np.uint8)
        if stream.read(1):  # reading to the end compares the checksum
            raise ConversionError(f"{shown} is longer than it says; it is damaged")
    array = check_bool(data.view(dtype).reshape(shape, order="F" if fortran else "C"))
    array.flags.writeable = False
    return array


def _parse_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Parses shape, order, type and end of a header exactly as NumPy writes it, without evaluating a Python literal."""
    if data[:6] != b"\x93NUMPY" or data[6:8] not in (b"\x01\0", b"\x02\0"):
        raise ConversionError("it holds a member that is not a NumPy array; save it with np.savez")
    start = 10 if data[6] == 1 else 12
    end = start + int.from_bytes(data[8:start], "little")
    text = data[start:end].decode("latin-1")
    if len(text) != end - start or not (match := _HEADER.fullmatch(text)):
        raise ConversionError(f"it holds an array with the header {show(text)}; save plain arrays with np.savez")
    shape = tuple(int(dim) for dim in match[3].split(",") if dim.strip())
    return shape, match[2] == "True", np.dtype(match[1]), end
