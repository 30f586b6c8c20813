"""Audio files to samples, block after block, so that memory follows neither the length nor what a header says of it.

soundfile is imported on first use.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, Shaped

from ecapa_jax.audio import ffmpeg, pieces, unfinished
from ecapa_jax.errors import AudioError, TooLongError, levels_to_user, one_line

Channel: TypeAlias = Literal["first", "left", "right", "mean"] | int
"""The first (left) or second (right) channel, the mean of all, or the one of a number from 0."""
Block: TypeAlias = tuple[int, Float32[np.ndarray, " samples"]]
"""Sample rate, the same in all of a file, and samples."""

_RATES = (100, 1_000_000)  # Hz
_BLOCK = 1 << 20  # samples of all channels that are decoded at a time
_UNKNOWN = 2**63 - 1  # what libsndfile says when the header gives no number of frames
_MPEG_FRAME = 1152  # samples
_CHUNK_ORDER = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">", b"FORM": ">"}


def decode(file: io.BufferedIOBase, name: str, channel: Channel, max_seconds: float) -> Iterator[Block]:
    """The channel of an audio file, in blocks of at most a few megabytes; at least one, which may be empty.

    Args:
      file: can be sought; not closed here.
      name: of the file, for messages.
      channel: which channel of several.
      max_seconds: a longer file is refused.

    Raises:
      AudioError: as `audio.load.load_audio` has it; the end of the file is only judged where it is reached.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise AudioError(f"{name}: is empty; give an audio file")
        first_rate = None
        for start, stop in pieces.boundaries(file, size):
            part = file if (start, stop) == (0, size) else io.BufferedReader(pieces.Part(file, start, stop))
            for rate, block in _decode_piece(part, stop - start, name, channel, max_seconds):
                if rate != (first_rate := first_rate or rate):
                    raise AudioError(
                        f"{name}: holds recordings one after the other, at {first_rate} and {rate} Hz; split it first"
                    )
                yield rate, block
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise AudioError(f"{name}: can't be read ({reason}); give an ordinary audio file") from error


def _decode_piece(
    file: io.BufferedIOBase, size: int, name: str, channel: Channel, max_seconds: float
) -> Iterator[Block]:
    """`decode` of a file that holds one stream."""
    import soundfile

    if repairs := unfinished.patches(file, size):
        message = f"{name}: its header was never finished (the recorder was stopped); it is read to its end"
        warnings.warn(message, UserWarning, stacklevel=levels_to_user())
        file = io.BufferedReader(pieces.Part(file, 0, size, repairs))
    _check_end(file, size, name)
    file.seek(0)
    begun = False
    try:
        for block in _by_soundfile(file, name, channel, max_seconds):
            begun = True
            yield block
    except soundfile.LibsndfileError as error:
        file.seek(0)
        kind = ffmpeg.kind_of(file.read(ffmpeg.HEAD))
        if begun:
            raise _undecodable(error, name) from error
        if kind is None:
            start = pieces.first_frame(file, size) if error.code == 1 else None
            if start is None:
                raise _undecodable(error, name) from error
            yield from _read_mp3(io.BufferedReader(pieces.Part(file, start, size)), name, channel, max_seconds)
            return
    else:
        return
    file.seek(0)
    yield from _by_others(file, name, kind, channel, max_seconds)


def checked_rate(rate: int | str, name: str) -> int:
    """The rate, Hz, if it is one of sound; text that says a number counts as one."""
    try:
        number = int(float(rate))
    except (TypeError, ValueError, OverflowError):
        raise AudioError(f"{name}: sample rate {rate!r} is no number; give it in Hz, such as 16000") from None
    if number != float(rate):
        raise AudioError(f"{name}: sample rate {rate} is no whole number; give it in Hz, such as 16000")
    if not _RATES[0] <= number <= _RATES[1]:
        raise AudioError(f"{name}: sample rate {rate} Hz is outside {_RATES[0]} to {_RATES[1]} Hz; check it")
    return number


def channel_from_text(text: str) -> Channel | None:
    """The channel that a text names: `first`, `left`, `right`, `mean` or a number from 1; None for any other text."""
    word = text.strip().lower()
    if word in ("first", "left", "right", "mean"):
        return word  # type: ignore[return-value]
    return int(word) - 1 if word.isdecimal() and int(word) >= 1 else None


def mono(samples: Shaped[np.ndarray, "samples channels"], channel: Channel) -> Shaped[np.ndarray, " samples"]:
    """One channel of several.

    Raises:
      AudioError: there are not so many.
    """
    if channel == "mean" and samples.shape[1] > 1:
        return samples.mean(axis=1, dtype=np.float64)
    if samples.shape[1] == 1 and not isinstance(channel, int):
        number = 0  # a recording of one side only, compared with a side of a call
    else:
        number = channel if isinstance(channel, int) else int(channel == "right")
    if number >= samples.shape[1]:
        raise AudioError(f"channel {number + 1} is asked for, and the recording has {samples.shape[1]}; name another")
    return np.ascontiguousarray(samples[:, number])


def _undecodable(error: Any, name: str) -> AudioError:
    if error.code == 1:  # format not recognised
        return AudioError(f"{name}: is not audio in a known format; give WAV, FLAC, OGG or MP3")
    reason = f"truncated, damaged or in an unknown coding: {one_line(error.error_string)}"
    return AudioError(f"{name}: can't be decoded ({reason}); get it again or convert it to WAV")


def _by_soundfile(file: io.BufferedIOBase, name: str, channel: Channel, max_seconds: float) -> Iterator[Block]:
    import soundfile

    with soundfile.SoundFile(_Steady(file)) as sound:
        if sound.format != "MP3":
            yield from _read(sound, name, channel, max_seconds)
            return
    yield from _read_mp3(file, name, channel, max_seconds)


def _read_mp3(file: io.BufferedIOBase, name: str, channel: Channel, max_seconds: float) -> Iterator[Block]:
    import soundfile

    with _piped(file) as pipe, soundfile.SoundFile(pipe, closefd=False) as sound:
        yield from _read(sound, name, channel, max_seconds)


def _by_others(file: io.BufferedIOBase, name: str, kind: str, channel: Channel, max_seconds: float) -> Iterator[Block]:
    n_frames = 0
    for rate, samples in ffmpeg.decode(file, name, kind, max_seconds + 1):
        n_frames += len(samples)
        if n_frames > max_seconds * checked_rate(rate, name):
            raise _too_long(name, max_seconds)
        yield rate, mono(samples, channel).astype(np.float32, copy=False)


class _Steady:
    """A file for soundfile, which prints any exception of a callback: a damaged header makes it seek anywhere."""

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self.read, self.tell = file.read, file.tell

    def readinto(self, buffer: Any) -> int:
        """As the file's; what can't be read is as if it were not there, and found missing."""
        with contextlib.suppress(OSError):
            return self._file.readinto(buffer)
        return 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As the file's, but stays where it is rather than leave the file."""
        with contextlib.suppress(ValueError, OverflowError, OSError):
            return self._file.seek(offset, whence)
        return self._file.tell()


def _read(sound: Any, name: str, channel: Channel, max_seconds: float) -> Iterator[Block]:
    """One channel of an opened file."""
    rate = checked_rate(sound.samplerate, name)
    limit, n_frames = max_seconds * rate, 0
    if limit < sound.frames < _UNKNOWN:
        raise _too_long(name, max_seconds)
    # soundfile seeks after each read if it thinks it can, which a pipe and a FLAC without a length do not survive.
    sound.seekable = lambda: False
    step = max(1, _BLOCK // sound.channels)
    # Never past the last frame: a tag may follow, which a decoder takes for a damaged frame.
    while len(block := sound.read(min(step, sound.frames - n_frames), dtype="float32", always_2d=True)):
        n_frames += len(block)
        if n_frames > limit:
            raise _too_long(name, max_seconds)
        yield rate, mono(block, channel).astype(np.float32, copy=False)
    # Some MP3 encoders count the frame that holds the count.
    slack = _MPEG_FRAME if sound.format == "MP3" else 0
    if n_frames + slack < sound.frames < _UNKNOWN:
        raise _truncated(name, f"{n_frames} of {sound.frames} frames are there")
    yield rate, np.zeros(0, np.float32)


@contextlib.contextmanager
def _piped(file: io.BufferedIOBase) -> Iterator[int]:
    """A descriptor that gives an MP3 without its ID3v2 tags, and can't seek.

    Where an MP3 has no length header, libsndfile guesses the length from the first frame and stops there: half of a
    recording with variable bit rate can be lost unseen. In a pipe it has nothing to guess from and reads to the end.
    """
    # libsndfile does not get over a tag with a picture in a pipe. Sizes are in 7-bit bytes.
    start = 0
    while (tag := _at(file, start, 10)).startswith(b"ID3") and len(tag) == 10:
        start += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9])
    file.seek(start)
    output, feed = os.pipe()

    def write() -> None:
        # The reader stops at the declared length, whatever follows.
        with contextlib.suppress(BrokenPipeError), os.fdopen(feed, "wb") as sink:
            shutil.copyfileobj(file, sink)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield output
    finally:
        os.close(output)
        writer.join()


def _at(file: io.BufferedIOBase, position: int, n_bytes: int) -> bytes:
    file.seek(position)
    return file.read(n_bytes)


def _check_end(file: io.BufferedIOBase, size: int, name: str) -> None:
    """Refuses a WAV, AIFF, AU or Ogg file that ends too early: libsndfile reads these to the end and says nothing."""
    if _at(file, 0, 4) == b"OggS":
        page = _last(file, size, b"OggS\0")
        header = 27 + (page[26] if len(page) > 26 else 0)
        if len(page) < header + sum(page[27:header]) or not page[5] & 4:
            raise _truncated(name, "the Ogg page that ends the stream is missing")
    end = _declared_end(file, size)
    if end is not None and size < end:
        raise _truncated(name, f"{size} of at least {end} bytes are there")


def _last(file: io.BufferedIOBase, size: int, magic: bytes) -> bytes:
    """The bytes from the last `magic` on, as many as a page of Ogg can have."""
    position = size
    while position > 0:
        stop, position = position, max(0, position - _BLOCK)
        if (found := _at(file, position, stop - position + len(magic) - 1).rfind(magic)) >= 0:
            return _at(file, position + found, 1 << 17)
    return b""


def _declared_end(file: io.BufferedIOBase, size: int) -> int | None:
    """Offset at which the samples of a RIFF, AIFF or AU file should end; None if no header tells."""
    content = _at(file, 0, 12)
    if content.startswith(b".snd") and len(content) >= 12:
        position, length = struct.unpack_from(">II", content, 4)
        return None if _from_pipe(length) else position + length
    order = _CHUNK_ORDER.get(content[:4])
    position, wide = 12, None
    while order and position + 8 <= size:
        kind, length = struct.unpack(order + "4sI", _at(file, position, 8))
        position += 8
        if kind == b"ds64":  # of RF64, whose data chunk has no room for the length
            wide = int.from_bytes(_at(file, position + 8, 8), "little")
        if kind in (b"data", b"SSND"):
            if wide is not None:
                return position + wide
            return None if _from_pipe(length) else position + length
        position += length + length % 2
    return None


def _from_pipe(length: int) -> bool:
    """Whether a writer that could not know the length left about 2^31 or 2^32 in its place."""
    return abs(length - 2**31) < 2**16 or length > 2**32 - 2**16


def _truncated(name: str, detail: str) -> AudioError:
    return AudioError(f"{name}: is truncated or damaged ({detail}); copy or download it again")


def _too_long(name: str, max_seconds: float) -> TooLongError:
    limit = f"{max_seconds / 3600:g} hours" if max_seconds >= 3600 else f"{max_seconds:g} seconds"
    return TooLongError(f"{name}: is longer than {limit}; cut it into parts")
