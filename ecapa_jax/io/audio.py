"""Recordings in, one float32 channel at the model's rate out.

The decoders are imported on first use, so that work on arrays needs none of them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import threading
from collections.abc import Iterator
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float32, Shaped

from ecapa_jax.errors import AudioError, DownloadError, TooLongError
from ecapa_jax.io import foreign, hub


@runtime_checkable
class SupportsRead(Protocol):
    """A file opened in binary mode, or anything that reads like one."""

    def read(self) -> bytes: ...  # noqa: D102


@runtime_checkable
class SupportsArray(Protocol):
    """A NumPy or JAX array, or a tensor that NumPy can read."""

    def __array__(self) -> np.ndarray: ...


AudioSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | SupportsRead | SupportsArray
Channel: TypeAlias = Literal["first", "mean"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_RATES = (100, 1_000_000)  # Hz
_UNSCALED = 1000.0  # no gain mistake reaches it, 16-bit samples without their 1/32768 do
_MAX_BYTES = 1 << 32  # of a file: six hours in any ordinary coding
_BLOCK = 1 << 20  # samples of all channels that are decoded at a time
_UNKNOWN = 2**63 - 1  # what libsndfile says when the header gives no number of frames
_MPEG_FRAME = 1152  # samples
_INTEGERS = {"i1": (0, 2.0**7), "u1": (128, 2.0**7), "i2": (0, 2.0**15), "i4": (0, 2.0**31)}  # offset, divisor
_CHUNK_ORDER = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">", b"FORM": ">"}


def name_of(source: object) -> str:
    """A short name for messages: the path, the URL without its query, a file's name, or what the source is."""
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        return hub.without_secrets(path) if _URL.match(path) else path
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes"
    if hasattr(source, "__array__"):
        return "array"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else type(source).__name__


def load_audio(
    source: AudioSource,
    *,
    sample_rate: int | None,
    target_rate: int,
    channel: Channel,
    max_seconds: float = 6 * 3600.0,
) -> Float32[np.ndarray, " samples"]:
    """Reads one recording: decodes, checks, picks a channel and resamples.

    Args:
      source: path, http(s) URL, the bytes of an audio file, a file opened in binary mode, or an array, [samples] or
        [samples, channels]. WAV, FLAC, OGG, MP3 and the other formats of libsndfile are decoded by it, MP4, WebM,
        WMA, AAC and AMR by PyAV (`pip install ecapa-jax[av]`), or by librosa where ffmpeg is installed. Arrays: int8,
        int16, int32 and uint8 are scaled by their full range, floats are taken to be in [-1, 1].
      sample_rate: rate of an array in Hz; None means `target_rate`. Files bring their own.
      target_rate: rate of the result, Hz.
      channel: the channel of a multi-channel recording that is kept, or the mean of all.
      max_seconds: a longer file is refused, before it is decoded if its header tells.

    Returns:
      The waveform, nominally in [-1, 1], at least one sample, all finite. May share memory with an array given.

    Raises:
      AudioError: the source can't be reached or decoded, is truncated, empty or too long, has samples that are not
        finite or were never scaled, or a rate outside 100 Hz to 1 MHz. An MP3 without a length header and a FLAC or
        WAV that was written to a pipe do not say how long they are, so that one of these that ends early is only
        noticed where the cut goes through a frame.
    """
    name = name_of(source)
    # A string or bytes taken out of a NumPy array is an array too.
    if hasattr(source, "__array__") and not isinstance(source, str | bytes):
        samples = _mono(_array(source, name), channel)
        rate = _checked_rate(target_rate if sample_rate is None else sample_rate, name)
    else:
        samples, rate = _decode(_content(source, name), name, channel, max_seconds)
    waveform = _checked(samples, name)
    if rate != _checked_rate(target_rate, "target_rate"):
        import soxr

        waveform = soxr.resample(waveform, rate, target_rate, quality="HQ")
        if waveform.size == 0:
            raise AudioError(f"{name}: {samples.size} samples at {rate} Hz are too short; give a longer recording")
    return waveform


def is_silent(waveform: Float32[np.ndarray, " samples"]) -> bool:
    """Whether all samples are equal: digital silence or a constant, in which there is no signal at all."""
    return bool(waveform.size == 0 or (waveform == waveform[0]).all())


def _array(source: object, name: str) -> Shaped[np.ndarray, "samples channels"]:
    """The source as floats, [samples, channels]."""
    try:
        array = np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(f"{name}: NumPy can't read it ({hub.one_line(error)}); give a NumPy array") from error
    if array.ndim not in (1, 2):
        raise AudioError(f"{name}: shape {array.shape}; give [samples] or [samples, channels]")
    if array.size == 0:
        raise AudioError(f"{name}: shape {array.shape} holds no samples; give some")
    if array.ndim == 2 and array.shape[0] < array.shape[1] and array.shape[0] <= 32:
        raise AudioError(f"{name}: shape {array.shape} looks like [channels, samples]; transpose it")
    if array.dtype.str[1:] in _INTEGERS:
        offset, divisor = _INTEGERS[array.dtype.str[1:]]
        array = (array.astype(np.float32) - np.float32(offset)) / np.float32(divisor)
    elif not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"{name}: dtype {array.dtype}; give int8, int16, int32, uint8 or a float dtype of NumPy")
    return array.reshape(len(array), -1)


def _mono(samples: Shaped[np.ndarray, "samples channels"], channel: Channel) -> Shaped[np.ndarray, " samples"]:
    if channel == "mean" and samples.shape[1] > 1:
        return samples.mean(axis=1, dtype=np.float64)
    return np.ascontiguousarray(samples[:, 0])


def _checked(samples: Shaped[np.ndarray, " samples"], name: str) -> Float32[np.ndarray, " samples"]:
    """The samples as float32, if they are samples of sound."""
    if samples.size == 0:
        raise AudioError(f"{name}: no samples in it (an unfinished recording?); give one with sound")
    if not np.isfinite(samples).all():
        at = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise AudioError(f"{name}: sample {at} is {samples[at]}; repair or cut out samples that are not finite")
    peak = float(np.abs(samples).max())
    if peak >= _UNSCALED:
        raise AudioError(f"{name}: samples reach {peak:g}, so they look like unscaled integers; divide by 32768")
    return samples.astype(np.float32, copy=False)


def _checked_rate(rate: int, name: str) -> int:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError(f"{name}: sample rate {rate} Hz is outside {_RATES[0]} to {_RATES[1]} Hz; check it")
    return rate


def _content(source: object, name: str) -> bytes:
    """The bytes of an audio file."""
    try:
        if isinstance(source, str) and _URL.match(source):
            return hub.fetch(source)
        if isinstance(source, str | os.PathLike):
            with open(source, "rb") as stream:
                if os.fstat(stream.fileno()).st_size > _MAX_BYTES:
                    raise AudioError(f"{name}: is larger than {_MAX_BYTES / 2**30:g} GiB; cut it into parts")
                return stream.read()
        content = source.read() if hasattr(source, "read") else source
    except AudioError:
        raise
    except DownloadError as error:
        raise AudioError(str(error)) from error
    except FileNotFoundError as error:
        raise AudioError(f"{name}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise AudioError(f"{name}: is a directory; give an audio file in it") from error
    except PermissionError as error:
        raise AudioError(f"{name}: may not be read (permission denied); change its access rights") from error
    except (OSError, ValueError) as error:  # the latter from a closed file, or from audio opened as text
        reason = getattr(error, "strerror", None) or hub.one_line(error)
        raise AudioError(f"{name}: can't be read ({reason}); give a path that can, or an open binary file") from error
    if not isinstance(content, bytes | bytearray | memoryview):
        kinds = "a path, a URL, bytes, a file opened in binary mode, or an array (numpy.asarray of a list)"
        raise AudioError(f"{name}: can't take audio from {type(content).__name__}; give {kinds}")
    return bytes(content)


class _Stream(io.BytesIO):
    """Bytes for soundfile, which prints any exception of a callback: a damaged header makes it seek anywhere."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As in the base class, but stays where it is rather than leave the file."""
        with contextlib.suppress(ValueError, OverflowError):
            return super().seek(offset, whence)
        return self.tell()


def _decode(
    content: bytes, name: str, channel: Channel, max_seconds: float
) -> tuple[Float32[np.ndarray, " samples"], int]:
    """Channel and rate of an audio file."""
    import soundfile

    if not content:
        raise AudioError(f"{name}: is empty; give an audio file")
    _check_end(content, name)
    try:
        with soundfile.SoundFile(_Stream(content)) as sound:
            if sound.format != "MP3":
                return _read(sound, name, channel, max_seconds), sound.samplerate
        with _piped(content) as pipe, soundfile.SoundFile(pipe, closefd=False) as sound:
            return _read(sound, name, channel, max_seconds), sound.samplerate
    except soundfile.LibsndfileError as error:
        if kind := foreign.kind_of(content):
            samples, rate = foreign.decode(content, name, kind, max_seconds + 1)
            if len(samples) > max_seconds * _checked_rate(rate, name):
                raise _too_long(name, max_seconds) from error
            return _mono(samples, channel).astype(np.float32, copy=False), rate
        if error.code == 1:  # format not recognised
            raise AudioError(f"{name}: is not audio in a known format; give WAV, FLAC, OGG or MP3") from error
        reason = f"truncated, damaged or in an unknown coding: {hub.one_line(error.error_string)}"
        raise AudioError(f"{name}: can't be decoded ({reason}); get it again or convert it to WAV") from error


def _read(sound: Any, name: str, channel: Channel, max_seconds: float) -> Float32[np.ndarray, " samples"]:
    """One channel of an opened file, in blocks, so that memory follows what is there and not what a header says."""
    limit = max_seconds * _checked_rate(sound.samplerate, name)
    if limit < sound.frames < _UNKNOWN:
        raise _too_long(name, max_seconds)
    # soundfile seeks after each read if it thinks it can, which a pipe and a FLAC without a length do not survive.
    sound.seekable = lambda: False
    parts, n_frames = [np.zeros(0, np.float32)], 0
    step = max(1, _BLOCK // sound.channels)
    # Never past the last frame: a tag may follow, which a decoder takes for a damaged frame.
    while len(block := sound.read(min(step, sound.frames - n_frames), dtype="float32", always_2d=True)):
        parts.append(_mono(block, channel).astype(np.float32, copy=False))
        n_frames += len(block)
        if n_frames > limit:
            raise _too_long(name, max_seconds)
    # Some MP3 encoders count the frame that holds the count.
    slack = _MPEG_FRAME if sound.format == "MP3" else 0
    if n_frames + slack < sound.frames < _UNKNOWN:
        raise _truncated(name, f"{n_frames} of {sound.frames} frames are there")
    return np.concatenate(parts)


@contextlib.contextmanager
def _piped(content: bytes) -> Iterator[int]:
    """A descriptor that gives an MP3 without its ID3v2 tags, and can't seek.

    Where an MP3 has no length header, libsndfile guesses the length from the first frame and stops there: half of a
    recording with variable bit rate can be lost unseen. In a pipe it has nothing to guess from and reads to the end.
    """
    # libsndfile does not get over a tag with a picture in a pipe. Sizes are in 7-bit bytes.
    start = 0
    while (tag := content[start : start + 10]).startswith(b"ID3") and len(tag) == 10:
        start += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9])
    output, feed = os.pipe()

    def write() -> None:
        # The reader stops at the declared length, whatever follows.
        with contextlib.suppress(BrokenPipeError), os.fdopen(feed, "wb") as sink:
            sink.write(memoryview(content)[start:])

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield output
    finally:
        os.close(output)
        writer.join()


def _check_end(content: bytes, name: str) -> None:
    """Refuses a WAV, AIFF, AU or Ogg file that ends too early: libsndfile reads these to the end and says nothing."""
    if content.startswith(b"OggS"):
        page = content[content.rfind(b"OggS\0") :]  # the last one
        header = 27 + (page[26] if len(page) > 26 else 0)
        if len(page) < header + sum(page[27:header]) or not page[5] & 4:
            raise _truncated(name, "the Ogg page that ends the stream is missing")
    end = _declared_end(content)
    if end is not None and len(content) < end:
        raise _truncated(name, f"{len(content)} of at least {end} bytes are there")


def _declared_end(content: bytes) -> int | None:
    """Offset at which the samples of a RIFF, AIFF or AU file should end; None if no header tells."""
    if content.startswith(b".snd") and len(content) >= 12:
        position, length = struct.unpack_from(">II", content, 4)
        return None if _from_pipe(length) else position + length
    order = _CHUNK_ORDER.get(content[:4])
    position, wide = 12, None
    while order and position + 8 <= len(content):
        kind, length = struct.unpack_from(order + "4sI", content, position)
        position += 8
        if kind == b"ds64":  # of RF64, whose data chunk has no room for the length
            wide = int.from_bytes(content[position + 8 : position + 16], "little")
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
