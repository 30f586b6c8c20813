"""Reads archives of NeMo, plain or gzipped tar files with a YAML file and a PyTorch checkpoint, without unpacking them.

`tarfile.TarInfo` parses headers, but this module walks from one header to the next itself, because `tarfile` reads as
much as an extended header asks for and follows links.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from typing import Any

from ecapa_jax.convert.readers.arrays import one_line_errors
from ecapa_jax.convert.readers.pickle_machine import show
from ecapa_jax.errors import ConversionError

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_BLOCK = tarfile.BLOCKSIZE
_MAX_CONFIG = 1 << 18
_MAX_EXTENSION = 1 << 16
_MAX_MEMBERS = 1000
_CHUNK = 1 << 20

_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)


class _FileSlice(io.RawIOBase):
    """Part of a file with the interface of a file."""

    def __init__(self, file: io.BufferedIOBase, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a position, as for any file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Reads bytes into a buffer, as for any file."""
        self._file.seek(self._start + self._at)
        data = self._file.read(min(len(buffer), max(self._size - self._at, 0)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_nemo(
    file: io.BufferedReader | io.BytesIO, name: str, *, compressed: bool
) -> tuple[bytes, io.BufferedReader | io.BytesIO]:
    """Returns the text of `model_config.yaml`, and `model_weights.ckpt` as a readable file.

    The weights of a compressed archive are held in memory, up to four times the size of the archive plus 16 MiB.

    Raises:
      ConversionError: the file is not such an archive, is damaged, contains links, devices, paths out of its folder or
        one of the two files twice, or unpacks to far more than its size.
    """
    with one_line_errors(name):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if compressed else file
        limit = 4 * size + (16 << 20) if compressed else size
        config: bytes | None = None
        weights: io.BufferedReader | io.BytesIO | None = None
        for member, start in _walk_members(stream, limit):
            if member.name == CONFIG:
                if member.size > _MAX_CONFIG:
                    raise ConversionError(f"its {CONFIG} is larger than {_MAX_CONFIG >> 10} kB")
                config = _read_exactly(stream, member.size)
            elif member.name == WEIGHTS and compressed:
                weights = io.BytesIO(_read_exactly(stream, member.size))
            elif member.name == WEIGHTS:
                weights = io.BufferedReader(_FileSlice(file, start, member.size), _CHUNK)
        if config is None or weights is None:
            missing = CONFIG if config is None else WEIGHTS
            raise ConversionError(
                f"it is a tar archive without {missing}, so it is not a NeMo model; give the checkpoint in it"
            )
        return config, weights


def _walk_members(stream: io.BufferedIOBase, limit: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yields each regular file and the start of its content. The caller may read this content, but nothing after it."""
    seen: set[str] = set()
    at = 0
    for _ in range(_MAX_MEMBERS):
        stream.seek(at)
        block = stream.read(_BLOCK)
        if not block.strip(b"\0"):
            if not block:
                raise ConversionError("its tar archive has no end, so it is cut off; download it again")
            return
        member = _parse_header(block, first=at == 0)
        start = at + _BLOCK
        at = start + -(-member.size // _BLOCK) * _BLOCK
        if member.size < 0 or at > limit:
            raise ConversionError(f"{show(member.name)} claims {member.size} bytes, more than the archive can hold")
        if member.type in _EXTENSIONS:
            _check_extension(_read_exactly(stream, min(member.size, _MAX_EXTENSION + 1)))
            continue
        member.name = _check_name(member)
        if member.type == tarfile.DIRTYPE:
            continue
        if member.name in seen:
            raise ConversionError(f"it holds {show(member.name)} twice; it is damaged or malicious")
        seen.add(member.name)
        yield member, start
    raise ConversionError(f"its tar archive has over {_MAX_MEMBERS} members, so it is not a NeMo model")


def _parse_header(block: bytes, *, first: bool) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        if first:
            raise ConversionError(
                "it is compressed but not a NeMo model (it contains no tar archive); unpack it"
            ) from error
        raise


def _check_name(member: tarfile.TarInfo) -> str:
    """Returns the name of the member below the folder of the archive."""
    if member.type not in (*_FILES, tarfile.DIRTYPE):
        raise ConversionError(f"its member {show(member.name)} is a link, a device or unknown; nothing was read")
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts or "\\" in member.name:
        raise ConversionError(f"its member {show(member.name)} points outside its folder; nothing was read")
    return "/".join(parts)


def _check_extension(records: bytes) -> None:
    """Raises an error if an extended header renames or resizes the next member, which NeMo never does."""
    if len(records) > _MAX_EXTENSION or any(
        word in records for word in (b" path=", b" size=", b" linkpath=", b" GNU.")
    ):
        raise ConversionError(
            "an extended header is too large or changes the name or size of a member; nothing was read"
        )


def _read_exactly(stream: io.BufferedIOBase, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ConversionError("it ends within a member, so it is cut off; download it again")
    return data
