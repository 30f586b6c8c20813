"""Recordings in, one float32 channel at the model's rate out.

The decoders are imported on first use, so that work on arrays needs none of them.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
import stat
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
from jaxtyping import Float32, Shaped

from ecapa_jax.audio.arrays import as_columns, from_dataset_row, is_dataset_row, to_floats
from ecapa_jax.audio.decoding import Block, Channel, checked_rate, decode, mono
from ecapa_jax.audio.files import open_binary, read_stream
from ecapa_jax.errors import AudioError, DownloadError, one_line, without_secrets


@runtime_checkable
class SupportsRead(Protocol):
    """A file opened in binary mode, or anything that reads like one."""

    def read(self) -> bytes: ...  # noqa: D102


@runtime_checkable
class SupportsArray(Protocol):
    """A NumPy or JAX array, or a tensor that NumPy can read."""

    def __array__(self) -> np.ndarray: ...


AudioSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | SupportsRead | SupportsArray | Mapping[str, Any]
)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_UNSCALED = 1000.0  # no gain mistake reaches it, 16-bit samples without their 1/32768 do
_MAX_BYTES = 1 << 32  # of a file: six hours in any ordinary coding
_BLOCK = 1 << 20  # samples of a long array that are converted at a time
_FAINT = 2.0**-16  # half a step of 16 bits: everything a front end sees of it lies at the floor of its energies


def name_of(source: object) -> str:
    """A short name for messages: the path, the URL without its query, a file's name, or what the source is."""
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        return without_secrets(path) if _URL.match(path) else path
    if isinstance(source, bytes | bytearray | memoryview):
        return "bytes"
    if hasattr(source, "__array__"):
        return "array"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else type(source).__name__


def load_audio(
    source: AudioSource,
    *,
    sample_rate: int | str | None,
    target_rate: int,
    channel: Channel,
    max_seconds: float = 6 * 3600.0,
) -> Float32[np.ndarray, " samples"]:
    """Reads one recording: decodes, checks, picks a channel and resamples.

    Args:
      source: path, http(s) URL, the bytes of an audio file, a file opened in binary mode, or an array, [samples] or
        [samples, channels]. WAV, FLAC, OGG, MP3 and the other formats of libsndfile are decoded by it, MP4, WebM,
        WMA, AAC and AMR by PyAV (`pip install ecapa-jax[av]`), or by librosa where ffmpeg is installed. Arrays: int8,
        int16, int32 and uint8 are scaled by their full range, floats are taken to be in [-1, 1]. Tensors of PyTorch
        on any device, and a row of Hugging Face datasets, {"array", "sampling_rate"}. `-` is standard input.
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
    waveform = _read(source, sample_rate, target_rate, channel, math.inf, max_seconds)
    assert not isinstance(waveform, LongAudio)
    return waveform


def open_audio(
    source: AudioSource,
    *,
    sample_rate: int | str | None,
    target_rate: int,
    channel: Channel,
    longest: float,
    max_seconds: float = 48 * 3600.0,
) -> Float32[np.ndarray, " samples"] | LongAudio:
    """As `load_audio`, but what is longer than `longest` seconds stays where it is, to be read as a stream.

    Of a path nothing is held; bytes, and what a URL or an open file gives, are held as they are, decoded as a stream.

    Raises:
      AudioError: as `load_audio`, as far as it has been read.
    """
    return _read(source, sample_rate, target_rate, channel, longest, max_seconds)


def _read(
    source: object,
    sample_rate: int | str | None,
    target_rate: int,
    channel: Channel,
    longest: float,
    max_seconds: float,
) -> Float32[np.ndarray, " samples"] | LongAudio:
    """The recording, or where it is longer than `longest` seconds, the way to read it."""
    if is_dataset_row(source):
        source, sample_rate = from_dataset_row(source, sample_rate)  # type: ignore[arg-type]
    name, whole = name_of(source), longest == math.inf
    reader: Callable[[], Generator[Block]]
    # A string or bytes taken out of a NumPy array is an array too.
    if hasattr(source, "__array__") and not isinstance(source, str | bytes):
        array, rate = as_columns(source, name), checked_rate(target_rate if sample_rate is None else sample_rate, name)
        step = len(array) if whole else _BLOCK

        def reader() -> Generator[Block]:
            for start in range(0, len(array), step):
                yield rate, mono(to_floats(array[start : start + step]), channel)
    else:
        # What is no ordinary file, such as a pipe of the shell, can be read once.
        kept = source
        if not (_is_path(source) and os.path.isfile(source)):
            with _file(source, name, whole=whole) as file:
                kept = file.read()

        def reader() -> Generator[Block]:
            with _file(kept, name, whole=whole) as file:
                yield from decode(file, name, channel, max_seconds)

    checked_rate(target_rate, "target_rate")
    parts, n_samples = [], 0
    for rate, block in (blocks := reader()):
        parts.append(block)
        n_samples += len(block)
        if n_samples > longest * rate:
            blocks.close()
            return LongAudio(name, target_rate, reader)
    return _resampled(_checked(parts[0] if len(parts) == 1 else np.concatenate(parts), name), rate, target_rate, name)


@dataclasses.dataclass
class LongAudio:
    """A recording too long to be held whole: each iteration reads it from its beginning, in blocks at `rate`.

    The samples are those that `load_audio` gives, to the bit: its resampler is the same stream.

    Attributes:
      name: for messages.
      rate: of the samples, Hz.
      reader: gives the blocks as they are stored, at a rate of their own.
      is_silent: whether the samples of the last iteration hold no signal, as `is_silent` has it.
    """

    name: str
    rate: int
    reader: Callable[[], Generator[Block]]
    is_silent: bool = False

    def __iter__(self) -> Iterator[Float32[np.ndarray, " _"]]:
        """Blocks of samples, none empty.

        Raises:
          AudioError: the recording is damaged here, or holds samples that are not finite or never scaled.
        """
        low, high, self.is_silent = math.inf, -math.inf, True
        for block in filter(len, self._blocks()):
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            self.is_silent = high - low < 2 * _FAINT
            yield block

    def _blocks(self) -> Iterator[Float32[np.ndarray, " _"]]:
        stream, at = None, 0
        for rate, block in self.reader():
            samples = _checked(block, self.name, at) if len(block) else block.astype(np.float32)
            at += len(block)
            if rate == self.rate:
                yield samples
                continue
            if stream is None:
                import soxr

                stream = soxr.ResampleStream(rate, self.rate, 1, dtype="float32", quality="HQ")
            yield stream.resample_chunk(samples)
        if stream is not None:
            yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _resampled(
    samples: Float32[np.ndarray, " _"], rate: int, target_rate: int, name: str
) -> Float32[np.ndarray, " samples"]:
    if rate == target_rate:
        return samples
    import soxr

    waveform = soxr.resample(samples, rate, target_rate, quality="HQ")
    if waveform.size == 0:
        raise AudioError(f"{name}: {samples.size} samples at {rate} Hz are too short; give a longer recording")
    return waveform


def is_silent(waveform: Float32[np.ndarray, " samples"]) -> bool:
    """Whether there is no signal at all: the samples stay within half a step of 16 bits around a constant."""
    return bool(waveform.size == 0 or float(waveform.max()) - float(waveform.min()) < 2 * _FAINT)


def _checked(samples: Shaped[np.ndarray, " samples"], name: str, first: int = 0) -> Float32[np.ndarray, " samples"]:
    """The samples, of which `first` is the first, as float32, if they are samples of sound."""
    if samples.size == 0:
        raise AudioError(f"{name}: no samples in it (an unfinished recording?); give one with sound")
    if not np.isfinite(samples).all():
        at = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise AudioError(f"{name}: sample {first + at} is {samples[at]}; repair or cut out samples that are not finite")
    peak = float(np.abs(samples).max())
    if peak >= _UNSCALED:
        raise AudioError(f"{name}: samples reach {peak:g}, so they look like unscaled integers; divide by 32768")
    return samples.astype(np.float32, copy=False)


def _is_path(source: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(source, os.PathLike) or (isinstance(source, str) and not _URL.match(source))


def _file(source: object, name: str, *, whole: bool) -> io.BufferedIOBase:
    """The audio file, opened or held; if it will be held `whole`, not larger than memory should take."""
    try:
        if isinstance(source, str) and _URL.match(source):
            from ecapa_jax.hub.http import fetch  # urllib takes long to import

            return io.BytesIO(fetch(source))
        if isinstance(source, str | os.PathLike):
            return _opened(open_binary(source, name), name, whole=whole)
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
        reason = getattr(error, "strerror", None) or one_line(error)
        raise AudioError(f"{name}: can't be read ({reason}); give a path that can, or an open binary file") from error
    if not isinstance(content, bytes | bytearray | memoryview):
        kinds = "a path, a URL, bytes, a file opened in binary mode, or an array (numpy.asarray of a list)"
        raise AudioError(f"{name}: can't take audio from {type(content).__name__}; give {kinds}")
    return io.BytesIO(content)


def _opened(file: io.BufferedIOBase, name: str, *, whole: bool) -> io.BufferedIOBase:
    """The file itself, or where it can't be sought its contents."""
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode):
        if whole and status.st_size > _MAX_BYTES:
            file.close()
            raise AudioError(f"{name}: is larger than {_MAX_BYTES / 2**30:g} GiB; cut it into parts")
        return file
    with file:
        return io.BytesIO(read_stream(file, name))
