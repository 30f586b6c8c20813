"""Reads zip checkpoints of PyTorch (torch.save since 1.6) without PyTorch and without running anything in them.

A checkpoint is a pickle, `data.pkl`, beside one raw file for each storage. `pickle_machine` turns the pickle into
containers and descriptions of tensors. This module makes the arrays in a second pass, after checking each description.
"""

from __future__ import annotations

import io
import os
import zipfile

from ecapa_jax.convert.readers.arrays import TreeBuilder, make_size_error, one_line_errors
from ecapa_jax.convert.readers.pickle_machine import MAX_PICKLE, PickleMachine, Storage, show
from ecapa_jax.errors import ConversionError

_MAX_MEMBERS = 10_000
_ENTRY = b"PK\x01\x02"
_CHUNK = 1 << 20


def read_torch_zip(file: io.BufferedReader | io.BytesIO, name: str, *, max_bytes: int | None = None) -> object:
    """Reads a zip checkpoint as dicts, OrderedDicts, lists, tuples, scalars, strings, bytes, and arrays for tensors.

    Arrays are read-only and have the dtypes of the file (bfloat16 is the type of ml_dtypes).

    Args:
      file: a seekable file, which stays open.
      name: name of the file in error messages.
      max_bytes: limit on the total size of all tensors, because a small file can claim any size; by default four times
        the size of the file plus 64 MiB.

    Raises:
      ConversionError: the file is not such a checkpoint, is damaged, names anything but tensors and plain containers,
        or holds more than `max_bytes` of tensors.
    """
    with one_line_errors(name):
        size = file.seek(0, os.SEEK_END)
        limit = 4 * size + (64 << 20) if max_bytes is None else max_bytes
        check_entries(file)
        with zipfile.ZipFile(file) as archive:
            prefix = _check_members(archive, size)
            tree = PickleMachine().run(archive.read(f"{prefix}data.pkl"))

            def read(storage: Storage) -> bytes:
                member = archive.getinfo(f"{prefix}data/{storage.key}")
                if member.file_size != storage.numel * storage.dtype.itemsize:
                    raise make_size_error(storage, member.file_size)
                return archive.read(member)

            return TreeBuilder(read, limit).build(tree)


def check_entries(file: io.BufferedReader | io.BytesIO) -> None:
    """Limits the number of entries, because `zipfile` takes 600 bytes for an entry that takes 46 bytes in the file.

    Raises:
      ConversionError: the archive may have too many entries.
    """
    file.seek(0)
    count, tail = 0, b""
    while chunk := file.read(_CHUNK):
        count += (tail + chunk).count(_ENTRY)
        tail = chunk[1 - len(_ENTRY) :]
    if count > _MAX_MEMBERS:
        raise ConversionError(f"its zip archive has over {_MAX_MEMBERS} members; save only the state dict")


def _check_members(archive: zipfile.ZipFile, size: int) -> str:
    """Checks the members of the archive and returns its top folder with a slash."""
    members = archive.infolist()
    names = [member.filename for member in members]
    pickles = [name for name in names if name == "data.pkl" or (name.count("/") == 1 and name.endswith("/data.pkl"))]
    if len(pickles) != 1 or len(set(names)) != len(names):
        raise ConversionError(_explain_refusal(names))
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in names or any(name.startswith(f"{prefix}code/") for name in names):
        raise ConversionError(
            "it is a TorchScript archive, which is a program (ECAPA2, another network, is published as one); save the "
            "weights of an ECAPA-TDNN with torch.save(torch.jit.load(f).state_dict(), f2)"
        )
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ConversionError(f"{show(member.filename)} is compressed, which PyTorch never does; save it again")
    if sum(member.file_size for member in members) > size:
        raise ConversionError("its members claim more bytes than the file has; it is damaged or malicious")
    if archive.getinfo(pickles[0]).file_size > MAX_PICKLE:
        raise ConversionError(f"data.pkl is over {MAX_PICKLE >> 20} MiB; save only the state dict")
    if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
        raise ConversionError("it is not little-endian; save it again on a little-endian machine")
    return prefix


def _explain_refusal(names: list[str]) -> str:
    if len(set(names)) != len(names):
        return "it is a zip archive with two members of the same name; it is damaged or malicious"
    found = ", ".join(show(name) for name in names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"
    return f"it is a zip archive but not a PyTorch checkpoint (no single data.pkl; it holds {found}); unpack it first"
