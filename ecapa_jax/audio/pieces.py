"""Where the streams of an audio file begin and end, when several were written one after the other.

Recorders and speech servers join files by their bytes. Decoders read the first and say nothing about the others.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from typing import Any

_BLOCK = 1 << 20
_RIFF = re.compile(rb"(?:RIFF|RIFX|RF64)....WAVE", re.DOTALL)
_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_LONGEST = 12  # bytes of a pattern
_BIT_RATES = {  # kbit/s of layer III
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_IN_A_ROW = 4  # frames that make an MP3 sure


class Part(io.RawIOBase):
    """A stretch of a file as a file of its own, with some of its bytes replaced."""

    def __init__(self, file: Any, start: int, stop: int, patches: dict[int, bytes] | None = None):
        self._file, self._start, self._size, self._at = file, start, stop - start, 0
        self._patches = patches or {}

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:  # noqa: D102
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError("negative seek position")
        self._at = at
        return at

    def readinto(self, buffer: Any, /) -> int:  # noqa: D102
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        self._file.seek(self._start + self._at)
        content = bytearray(self._file.read(wanted))
        for offset, replacement in self._patches.items():
            for index, byte in enumerate(replacement, offset - self._at):
                if 0 <= index < len(content):
                    content[index] = byte
        view[: len(content)] = content
        self._at += len(content)
        return len(content)


def boundaries(file: Any, size: int) -> list[tuple[int, int]]:
    """Start and stop of each stream in the file; one that covers the whole file where it holds one."""
    head = _at(file, 0, 12)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        starts = _found(file, size, _RIFF, _wav_end(file, size))
    elif head.startswith(b"fLaC"):
        starts = _found(file, size, _FLAC, 4)
    elif head.startswith(b"OggS"):
        starts = _ogg_starts(file, size)
    elif head.startswith(b"ID3") or _frame(head[:4]):
        starts = _mp3_starts(file, size)
    else:
        return [(0, size)]
    starts = [0, *starts]
    return list(zip(starts, [*starts[1:], size], strict=True))


def first_frame(file: Any, size: int) -> int | None:
    """Where the first whole MP3 frame begins in a file whose beginning was cut off; None in what is no MP3."""
    return _next_chain(file, 0, size)


def _next_chain(file: Any, start: int, size: int) -> int | None:
    """Where frames follow each other again after bytes that are none, not far from there."""
    near = _at(file, start, 1 << 14)
    for offset in range(len(near) - 4):
        header = near[offset : offset + 4]
        if _frame(header) and _chain(file, start + offset, size, header[1] & 0xFE):
            return start + offset
    return None


def _chain(file: Any, at: int, size: int, kind: int) -> bool:
    for _ in range(_IN_A_ROW):
        header = _at(file, at, 4)
        length = _frame(header)
        if not length or header[1] & 0xFE != kind:
            return False
        at += length
    return at <= size


def _at(file: Any, position: int, n_bytes: int) -> bytes:
    file.seek(position)
    return file.read(n_bytes)


def _found(file: Any, size: int, pattern: re.Pattern[bytes], start: int) -> list[int]:
    """Where the pattern stands from `start` on."""
    places: list[int] = []
    for position in range(start, size, _BLOCK):
        content = _at(file, position, _BLOCK + _LONGEST - 1)
        places += [position + match.start() for match in pattern.finditer(content) if match.start() < _BLOCK]
    return places


def _wav_end(file: Any, size: int) -> int:
    """Where the samples of the first WAV end at the earliest, as its header says."""
    order = ">" if _at(file, 0, 4) == b"RIFX" else "<"
    position = 12
    while position + 8 <= size:
        kind, length = struct.unpack(order + "4sI", _at(file, position, 8))
        position += 8
        if kind == b"data":
            return position if length > size - position else position + length
        position += length + length % 2
    return size


def _ogg_starts(file: Any, size: int) -> list[int]:
    """Pages that begin a stream, after pages that do not."""
    starts, position, beginning = [], 0, True
    while position + 27 <= size:
        page = _at(file, position, 27 + 255)
        if not page.startswith(b"OggS"):
            content = _at(file, position + 1, _BLOCK)
            found = content.find(b"OggS\0")
            position += 1 + (found if found >= 0 else max(1, len(content) - 4))
            continue
        begins = bool(page[5] & 2)
        if begins and not beginning:
            starts.append(position)
        beginning = begins
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])
    return starts


def _frame(header: bytes) -> int:
    """Bytes of an MPEG layer III frame with this header; 0 if it is none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, rate_index, bit_index = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or rate_index == 3 or bit_index in (0, 15):
        return 0
    bits = _BIT_RATES[version == 3][bit_index] * 1000
    return (144 if version == 3 else 72) * bits // _SAMPLE_RATES[version][rate_index] + (header[2] >> 1 & 1)


def _count_in(frame: bytes) -> int | None:
    """The number of frames that a frame of information (Xing, Info) declares, 0 if none; None in a frame of sound."""
    version, single = frame[1] >> 3 & 3, frame[3] >> 6 == 3
    place = 4 + ((17 if single else 32) if version == 3 else (9 if single else 17))
    if frame[place : place + 4] not in (b"Xing", b"Info"):
        return None
    return int.from_bytes(frame[place + 8 : place + 12]) if frame[place + 7] & 1 else 0


def _mp3_starts(file: Any, size: int) -> list[int]:
    """Frames of information after frames of sound, tags between frames, and frames after the declared last one."""
    starts: list[int] = []
    remaining: int | None = None
    n_sound = beyond = 0
    for position, frame, after_tag in _frames(file, size):
        count = _count_in(frame)
        if n_sound and (count is not None or after_tag):
            starts.append(position)
            n_sound, remaining = 0, None
        if count is not None:
            remaining = count or None
            continue
        n_sound += 1
        if remaining is not None:
            remaining -= 1
            beyond = position if remaining == -1 else beyond
            if remaining == -3:  # some encoders count the frame of information
                starts.append(beyond)
                remaining = None
    return starts


def _frames(file: Any, size: int) -> Iterator[tuple[int, bytes, bool]]:
    """Positions and beginnings of frames that follow each other, and whether a tag stands before one."""
    position, after_tag = 0, False
    block, begin = b"", 0
    while position + 4 <= size:
        if not begin <= position <= begin + len(block) - 64:
            begin, block = position, _at(file, position, _BLOCK)
        head = block[position - begin : position - begin + 64]
        if head.startswith(b"ID3") and len(head) >= 10:
            position += 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
            after_tag = True
        elif head.startswith(b"TAG"):
            position += 128
        elif head.startswith(b"APETAGEX") and len(head) >= 24:
            position += int.from_bytes(head[12:16], "little") + (32 if head[23] & 0x20 else 0)
        elif length := _frame(head):
            if len(head) >= 56:
                yield position, head, after_tag
            position, after_tag = position + length, False
        else:
            resumed = _next_chain(file, position + 1, size)
            if resumed is None:
                return
            position = resumed
