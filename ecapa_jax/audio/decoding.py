"""Decodes audio files block by block, so that memory depends neither on their length nor on the length in the header.

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
from ecapa_jax.audio.pieces import read_at
from ecapa_jax.errors import AudioError, TooLongError, levels_to_user, one_line

Channel: TypeAlias = Literal["first", "left", "right", "mean"] | int
"""The first (left) or second (right) channel, the mean of all channels, or the number of a channel, from 0."""
Block: TypeAlias = tuple[int, Float32[np.ndarray, " samples"]]
"""Sample rate, which is the same for all blocks of a file, and samples."""

_RATES = (100, 1_000_000)  # Hz
_BLOCK = 1 << 20  # number of samples of all channels that are decoded at once
_UNKNOWN = 2**63 - 1  # the number of frames in libsndfile if the header gives none
_MPEG_FRAME = 1152  # samples
_CHUNK_ORDER = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">", b"FORM": ">"}


def decode(file: io.BufferedIOBase, name: str, channel: Channel, max_seconds: float) -> Iterator[Block]:
    """Yields the samples of one channel of an audio file, in blocks of at most a few megabytes.

    There is at least one block, which may be empty.

    Args:
      file: a seekable file, which is not closed.
      name: name of the file, for messages.
      channel: the channel to return.
      max_seconds: longest recording that is accepted.

    Raises:
      AudioError: as for `audio.load.load_audio`; a truncated file is noticed only if it is read to its end.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise AudioError(f"{name}: is empty; give an audio file")
        first_rate = None
        for start, stop in pieces.find_streams(file, size):
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
    """Does what `decode` does, for a file that holds one stream."""
    import soundfile

    if repairs := unfinished.find_patches(file, size):
        message = f"{name}: its header was never finished (the recorder was stopped); it is read to its end"
        warnings.warn(message, UserWarning, stacklevel=levels_to_user())
        file = io.BufferedReader(pieces.Part(file, 0, size, repairs))
    _check_end(file, size, name)
    file.seek(0)
    begun = False
    try:
        for block in _decode_by_soundfile(file, name, channel, max_seconds):
            begun = True
            yield block
    except soundfile.LibsndfileError as error:
        file.seek(0)
        kind = ffmpeg.kind_of(file.read(ffmpeg.HEAD))
        if begun:
            raise _explain_decoding_error(error, name) from error
        if kind is None:
            start = pieces.find_first_frame(file, size) if error.code == 1 else None
            if start is None:
                raise _explain_decoding_error(error, name) from error
            yield from _read_mp3(io.BufferedReader(pieces.Part(file, start, size)), name, channel, max_seconds)
            return
    else:
        return
    file.seek(0)
    yield from _decode_by_ffmpeg(file, name, kind, channel, max_seconds)


def check_rate(rate: int | str, name: str) -> int:
    """Returns a sample rate as an integer in Hz, from a number or from text.

    Raises:
      AudioError: the rate is not a whole number, or out of range.
    """
    try:
        number = int(float(rate))
    except (TypeError, ValueError, OverflowError):
        raise AudioError(f"{name}: sample rate {rate!r} is not a number; give it in Hz, such as 16000") from None
    if number != float(rate):
        raise AudioError(f"{name}: sample rate {rate} is not a whole number; give it in Hz, such as 16000")
    if not _RATES[0] <= number <= _RATES[1]:
        raise AudioError(f"{name}: sample rate {rate} Hz is outside {_RATES[0]} to {_RATES[1]} Hz; check it")
    return number


def channel_from_text(text: str) -> Channel | None:
    """Returns the channel that a text names: `first`, `left`, `right`, `mean` or a number from 1; otherwise None."""
    word = text.strip().lower()
    if word in ("first", "left", "right", "mean"):
        return word  # type: ignore[return-value]
    return int(word) - 1 if word.isdecimal() and int(word) >= 1 else None


def pick_channel(samples: Shaped[np.ndarray, "samples channels"], channel: Channel) -> Shaped[np.ndarray, " samples"]:
    """Returns one channel, or the mean of all.

    Raises:
      AudioError: the recording has no such channel.
    """
    if channel == "mean" and samples.shape[1] > 1:
        return samples.mean(axis=1, dtype=np.float64)
    if samples.shape[1] == 1 and not isinstance(channel, int):
        number = 0  # the recording has one side only, to be compared with one side of a call
    else:
        number = channel if isinstance(channel, int) else int(channel == "right")
    if number >= samples.shape[1]:
        raise AudioError(f"channel {number + 1} is asked for, and the recording has {samples.shape[1]}; name another")
    return np.ascontiguousarray(samples[:, number])


def _explain_decoding_error(error: Any, name: str) -> AudioError:
    if error.code == 1:  # format not recognised
        return AudioError(f"{name}: is not audio in a known format; give WAV, FLAC, OGG or MP3")
    reason = f"truncated, damaged or in an unknown coding: {one_line(error.error_string)}"
    return AudioError(f"{name}: can't be decoded ({reason}); get it again or convert it to WAV")


def _decode_by_soundfile(file: io.BufferedIOBase, name: str, channel: Channel, max_seconds: float) -> Iterator[Block]:
    import soundfile

    with soundfile.SoundFile(_SafeFile(file)) as sound:
        if sound.format != "MP3":
            yield from _read_blocks(sound, name, channel, max_seconds)
            return
    yield from _read_mp3(file, name, channel, max_seconds)


def _read_mp3(file: io.BufferedIOBase, name: str, channel: Channel, max_seconds: float) -> Iterator[Block]:
    import soundfile

    with _open_pipe(file) as pipe, soundfile.SoundFile(pipe, closefd=False) as sound:
        yield from _read_blocks(sound, name, channel, max_seconds)


def _decode_by_ffmpeg(
    file: io.BufferedIOBase, name: str, kind: str, channel: Channel, max_seconds: float
) -> Iterator[Block]:
    n_frames = 0
    for rate, samples in ffmpeg.decode(file, name, kind, max_seconds + 1):
        n_frames += len(samples)
        if n_frames > max_seconds * check_rate(rate, name):
            raise _make_too_long_error(name, max_seconds)
        yield rate, pick_channel(samples, channel).astype(np.float32, copy=False)


class _SafeFile:
    """A file whose methods don't raise: soundfile prints exceptions, and a damaged header makes it seek anywhere."""

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self.read, self.tell = file.read, file.tell

    def readinto(self, buffer: Any) -> int:
        """Reads from the file; returns 0 if the file can't be read, so that the bytes are found missing."""
        with contextlib.suppress(OSError):
            return self._file.readinto(buffer)
        return 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Moves to a position of the file, or stays at the current one if there is no such position."""
        with contextlib.suppress(ValueError, OverflowError, OSError):
            return self._file.seek(offset, whence)
        return self._file.tell()


def _read_blocks(sound: Any, name: str, channel: Channel, max_seconds: float) -> Iterator[Block]:
    """Yields the samples of one channel of an opened file."""
    rate = check_rate(sound.samplerate, name)
    limit, n_frames = max_seconds * rate, 0
    if limit < sound.frames < _UNKNOWN:
        raise _make_too_long_error(name, max_seconds)
    # soundfile seeks after each read if it can, which fails for a pipe and for a FLAC file without a length.
    sound.seekable = lambda: False
    step = max(1, _BLOCK // sound.channels)
    # Read no further than the last frame, because a decoder takes a tag after it for a damaged frame.
    while len(block := sound.read(min(step, sound.frames - n_frames), dtype="float32", always_2d=True)):
        n_frames += len(block)
        if n_frames > limit:
            raise _make_too_long_error(name, max_seconds)
        yield rate, pick_channel(block, channel).astype(np.float32, copy=False)
    # Some MP3 encoders also count the frame that holds the count.
    slack = _MPEG_FRAME if sound.format == "MP3" else 0
    if n_frames + slack < sound.frames < _UNKNOWN:
        raise _make_truncated_error(name, f"{n_frames} of {sound.frames} frames are there")
    yield rate, np.zeros(0, np.float32)


@contextlib.contextmanager
def _open_pipe(file: io.BufferedIOBase) -> Iterator[int]:
    """Yields the descriptor of a pipe from which an MP3 can be read without its ID3v2 tags.

    If an MP3 has no length header, libsndfile estimates its length from the first frame and stops there, so that half
    of a recording with variable bit rate can be lost silently. From a pipe, libsndfile reads to the end.
    """
    # In a pipe, libsndfile can't skip a tag with a picture. The size of a tag is coded in bytes of 7 bits.
    start = 0
    while (tag := read_at(file, start, 10)).startswith(b"ID3") and len(tag) == 10:
        start += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9])
    file.seek(start)
    output, feed = os.pipe()

    def write() -> None:
        # The reader may close the pipe early: it stops at the declared length.
        with contextlib.suppress(BrokenPipeError), os.fdopen(feed, "wb") as sink:
            shutil.copyfileobj(file, sink)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield output
    finally:
        os.close(output)
        writer.join()


def _check_end(file: io.BufferedIOBase, size: int, name: str) -> None:
    """Refuses a WAV, AIFF, AU or Ogg file that ends too early, which libsndfile would read without an error."""
    if read_at(file, 0, 4) == b"OggS":
        page = _find_last(file, size, b"OggS\0")
        header = 27 + (page[26] if len(page) > 26 else 0)
        if len(page) < header + sum(page[27:header]) or not page[5] & 4:
            raise _make_truncated_error(name, "the Ogg page that ends the stream is missing")
    end = _find_declared_end(file, size)
    if end is not None and size < end:
        raise _make_truncated_error(name, f"{size} of at least {end} bytes are there")


def _find_last(file: io.BufferedIOBase, size: int, magic: bytes) -> bytes:
    """Reads the bytes from the last `magic` on, up to the largest size of an Ogg page."""
    position = size
    while position > 0:
        stop, position = position, max(0, position - _BLOCK)
        if (found := read_at(file, position, stop - position + len(magic) - 1).rfind(magic)) >= 0:
            return read_at(file, position + found, 1 << 17)
    return b""


def _find_declared_end(file: io.BufferedIOBase, size: int) -> int | None:
    """Returns where the samples of a RIFF, AIFF or AU file should end; None if its header does not say."""
    content = read_at(file, 0, 12)
    if content.startswith(b".snd") and len(content) >= 12:
        position, length = struct.unpack_from(">II", content, 4)
        return None if _is_placeholder(length) else position + length
    order = _CHUNK_ORDER.get(content[:4])
    position, wide = 12, None
    while order and position + 8 <= size:
        kind, length = struct.unpack(order + "4sI", read_at(file, position, 8))
        position += 8
        if kind == b"ds64":  # an RF64 file, whose data chunk has no room for the length
            wide = int.from_bytes(read_at(file, position + 8, 8), "little")
        if kind in (b"data", b"SSND"):
            if wide is not None:
                return position + wide
            return None if _is_placeholder(length) else position + length
        position += length + length % 2
    return None


def _is_placeholder(length: int) -> bool:
    """Whether a length is about 2^31 or 2^32, which programs write that do not know the length in advance."""
    return abs(length - 2**31) < 2**16 or length > 2**32 - 2**16


def _make_truncated_error(name: str, detail: str) -> AudioError:
    return AudioError(f"{name}: is truncated or damaged ({detail}); copy or download it again")


def _make_too_long_error(name: str, max_seconds: float) -> TooLongError:
    limit = f"{max_seconds / 3600:g} hours" if max_seconds >= 3600 else f"{max_seconds:g} seconds"
    return TooLongError(f"{name}: is longer than {limit}; cut it into parts")
