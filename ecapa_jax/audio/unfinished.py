"""Completes the headers of files whose recorder was killed before it wrote the length of the samples."""

from __future__ import annotations

import struct
from typing import Any

from ecapa_jax.audio.pieces import read_at

_ORDERS = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">", b"FORM": ">"}


def find_patches(file: Any, size: int) -> dict[int, bytes]:
    """Finds the bytes to replace so that the samples reach to the end of the file.

    Returns:
      Replacement bytes by position; empty if the header is finished.
    """
    head = read_at(file, 0, 12)
    if head.startswith(b".snd") and len(head) == 12:
        start, length = struct.unpack(">II", head[4:])
        return {8: b"\xff" * 4} if length == 0 and start < size else {}
    if head.startswith(b"caff"):
        return _patch_caf(file, size)
    return _patch_chunks(file, size, _ORDERS[head[:4]]) if head[:4] in _ORDERS else {}


def _patch_chunks(file: Any, size: int, order: str) -> dict[int, bytes]:
    position, wide, wide_at, common = 12, None, 0, 0
    while position + 8 <= size:
        kind, length = struct.unpack(order + "4sI", read_at(file, position, 8))
        start = position + 8
        if kind == b"ds64":
            wide_at, wide = start + 8, int.from_bytes(read_at(file, start + 8, 8), "little")
        elif kind == b"COMM":
            common = start
        elif kind == b"SSND":
            return _patch_aiff(file, size, position, length, common)
        elif kind == b"data":
            rest = size - start
            if rest <= 0 or _is_chunks(file, start, size, order):
                return {}
            if wide == 0 and length in (0, 2**32 - 1):
                return {wide_at: rest.to_bytes(8, "little"), position + 4: b"\xff" * 4}
            if length == 0 and wide is None:
                whole = struct.pack(order + "I", min(size - 8, 2**32 - 1))
                return {4: whole, position + 4: struct.pack(order + "I", min(rest, 2**32 - 1))}
            return {}
        position = start + length + length % 2
    return {}


def _patch_aiff(file: Any, size: int, position: int, length: int, common: int) -> dict[int, bytes]:
    rest = size - position - 16
    if not common or length > 8 or rest <= 0 or _is_chunks(file, position + 8 + length, size, ">"):
        return {}
    channels, _, bits = struct.unpack(">hIh", read_at(file, common, 8))
    n_frames = rest // max(1, channels * -(-bits // 8))
    return {
        4: struct.pack(">I", size - 8),
        common + 2: struct.pack(">I", n_frames),
        position + 4: struct.pack(">I", rest + 8),
    }


def _patch_caf(file: Any, size: int) -> dict[int, bytes]:
    position = 8
    while position + 12 <= size:
        kind, length = struct.unpack(">4sq", read_at(file, position, 12))
        if kind == b"data":
            return {position + 4: b"\xff" * 8} if 0 <= length <= 4 and size > position + 16 else {}
        if length < 0:
            return {}
        position += 12 + length
    return {}


def _is_chunks(file: Any, position: int, size: int, order: str) -> bool:
    """Whether chunks follow up to the end of the file, so that there really are no samples."""
    if position + 8 > size:
        return False
    while position + 8 <= size:
        kind, length = struct.unpack(order + "4sI", read_at(file, position, 8))
        if not all(0x20 <= byte < 0x7F for byte in kind):
            return False
        position += 8 + length + length % 2
    return size <= position <= size + 1 or position == size
