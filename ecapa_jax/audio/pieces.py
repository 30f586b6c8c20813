"""Finds the streams in an audio file, if several were written one after the other.

Some recorders and speech servers concatenate the bytes of files. Decoders read the first stream and ignore the others.
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
_LONGEST = 12  # bytes of the longest pattern
_BIT_RATES = {  # kbit/s of layer III
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_IN_A_ROW = 4  # number of consecutive frames that prove an MP3


class Part(io.RawIOBase):
    """A part of a file as a file, in which some bytes are replaced."""

    def __init__(self, file: Any, start: int, stop: int, patches: dict[int, bytes] | None = None):
        self._file, self._start, self._size, self._position = file, start, stop - start, 0
        self._patches = patches or {}

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:  # noqa: D102
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError("negative seek position")
        self._position = position
        return position

    def readinto(self, buffer: Any, /) -> int:  # noqa: D102
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._position))
        self._file.seek(self._start + self._position)
        content = bytearray(self._file.read(wanted))
        for offset, replacement in self._patches.items():
            for index, byte in enumerate(replacement, offset - self._position):
                if 0 <= index < len(content):
                    content[index] = byte
        view[: len(content)] = content
        self._position += len(content)
        return len(content)


def find_streams(file: Any, size: int) -> list[tuple[int, int]]:
    """Returns the start and stop of each stream in a file; a file with one stream is one stream as a whole."""
    head = read_at(file, 0, 12)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        starts = _find_all(file, size, _RIFF, _find_wav_end(file, size))
    elif head.startswith(b"fLaC"):
        starts = _find_all(file, size, _FLAC, 4)
    elif head.startswith(b"OggS"):
        starts = _find_ogg_starts(file, size)
    elif head.startswith(b"ID3") or _frame_size(head[:4]):
        starts = _find_mp3_starts(file, size)
    else:
        return [(0, size)]
    starts = [0, *starts]
    return list(zip(starts, [*starts[1:], size], strict=True))


def find_first_frame(file: Any, size: int) -> int | None:
    """Returns the start of the first whole MP3 frame in a file whose beginning is cut off; None if it is not an MP3."""
    return _find_frames(file, 0, size)


def _find_frames(file: Any, start: int, size: int) -> int | None:
    """Returns the start of the next sequence of MP3 frames near `start`; None if there is none."""
    near = read_at(file, start, 1 << 14)
    for offset in range(len(near) - 4):
        header = near[offset : offset + 4]
        if _frame_size(header) and _has_frames(file, start + offset, size, header[1] & 0xFE):
            return start + offset
    return None


def _has_frames(file: Any, position: int, size: int, kind: int) -> bool:
    """Whether a sequence of MP3 frames begins at a position."""
    for _ in range(_IN_A_ROW):
        header = read_at(file, position, 4)
        length = _frame_size(header)
        if not length or header[1] & 0xFE != kind:
            return False
        position += length
    return position <= size


def read_at(file: Any, position: int, n_bytes: int) -> bytes:
    """Reads up to `n_bytes` bytes at a position of a file."""
    file.seek(position)
    return file.read(n_bytes)


def _find_all(file: Any, size: int, pattern: re.Pattern[bytes], start: int) -> list[int]:
    """Returns the positions of a pattern from `start` on."""
    positions: list[int] = []
    for position in range(start, size, _BLOCK):
        content = read_at(file, position, _BLOCK + _LONGEST - 1)
        positions += [position + match.start() for match in pattern.finditer(content) if match.start() < _BLOCK]
    return positions


def _find_wav_end(file: Any, size: int) -> int:
    """Returns where the samples of the first WAV end according to its header; the file may go on after them."""
    order = ">" if read_at(file, 0, 4) == b"RIFX" else "<"
    position = 12
    while position + 8 <= size:
        kind, length = struct.unpack(order + "4sI", read_at(file, position, 8))
        position += 8
        if kind == b"data":
            return position if length > size - position else position + length
        position += length + length % 2
    return size


def _find_ogg_starts(file: Any, size: int) -> list[int]:
    """Returns the positions of pages that begin a stream after the pages of another stream."""
    starts, position, beginning = [], 0, True
    while position + 27 <= size:
        page = read_at(file, position, 27 + 255)
        if not page.startswith(b"OggS"):
            content = read_at(file, position + 1, _BLOCK)
            found = content.find(b"OggS\0")
            position += 1 + (found if found >= 0 else max(1, len(content) - 4))
            continue
        begins = bool(page[5] & 2)
        if begins and not beginning:
            starts.append(position)
        beginning = begins
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])
    return starts


def _frame_size(header: bytes) -> int:
    """Returns the size in bytes of an MPEG layer III frame with this header; 0 if this is not such a header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, rate_index, bit_index = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or rate_index == 3 or bit_index in (0, 15):
        return 0
    bits = _BIT_RATES[version == 3][bit_index] * 1000
    return (144 if version == 3 else 72) * bits // _SAMPLE_RATES[version][rate_index] + (header[2] >> 1 & 1)


def _declared_count(frame: bytes) -> int | None:
    """Returns the number of frames that an information frame (Xing, Info) declares, or 0; None for a frame of sound."""
    version, single = frame[1] >> 3 & 3, frame[3] >> 6 == 3
    place = 4 + ((17 if single else 32) if version == 3 else (9 if single else 17))
    if frame[place : place + 4] not in (b"Xing", b"Info"):
        return None
    return int.from_bytes(frame[place + 8 : place + 12]) if frame[place + 7] & 1 else 0


def _find_mp3_starts(file: Any, size: int) -> list[int]:
    """Returns the starts of further MP3s: information frames, tags, and frames beyond the declared number."""
    starts: list[int] = []
    remaining: int | None = None
    n_sound = beyond = 0
    for position, frame, after_tag in _iterate_frames(file, size):
        count = _declared_count(frame)
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
            if remaining == -3:  # some encoders count the information frame
                starts.append(beyond)
                remaining = None
    return starts


def _iterate_frames(file: Any, size: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yields the position and the first bytes of each MP3 frame, and whether a tag precedes it."""
    position, after_tag = 0, False
    block, begin = b"", 0
    while position + 4 <= size:
        if not begin <= position <= begin + len(block) - 64:
            begin, block = position, read_at(file, position, _BLOCK)
        head = block[position - begin : position - begin + 64]
        if head.startswith(b"ID3") and len(head) >= 10:
            position += 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
            after_tag = True
        elif head.startswith(b"TAG"):
            position += 128
        elif head.startswith(b"APETAGEX") and len(head) >= 24:
            position += int.from_bytes(head[12:16], "little") + (32 if head[23] & 0x20 else 0)
        elif length := _frame_size(head):
            if len(head) >= 56:
                yield position, head, after_tag
            position, after_tag = position + length, False
        else:
            resumed = _find_frames(file, position + 1, size)
            if resumed is None:
                return
            position = resumed
