"""Loads recordings as one channel of float32 samples at the sample rate of the model.

The decoders are imported on first use, because arrays don't need them.
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

from ecapa_jax.audio.arrays import as_columns, is_dataset_row, to_floats, unpack_dataset_row
from ecapa_jax.audio.decoding import Block, Channel, check_rate, decode, pick_channel
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
_UNSCALED = 1000.0  # samples with a wrong gain do not reach it, unscaled 16-bit samples do
_MAX_BYTES = 1 << 32  # limit for files; six hours in any usual coding are smaller
_BLOCK = 1 << 20  # number of samples of a long array that are converted at once
_FAINT = 2.0**-16  # half a step of 16 bits; the energies of fainter signals are at the floor of the front end


def name_of(source: object) -> str:
    """Returns a short name for messages: the path, the URL without its query, the name of the file, or the type."""
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
        [samples, channels]. libsndfile decodes WAV, FLAC, OGG, MP3 and its other formats. PyAV (`pip install
        ecapa-jax[av]`) decodes MP4, WebM, WMA, AAC and AMR, or librosa does if ffmpeg is installed. Arrays of int8,
        int16, int32 and uint8 are scaled by their full range; floats must be in [-1, 1]. A PyTorch tensor on any
        device and a row of a Hugging Face dataset, {"array", "sampling_rate"}, are accepted too. `-` is standard input.
      sample_rate: sample rate of an array in Hz; None means `target_rate`. It is ignored for files.
      target_rate: sample rate of the result in Hz.
      channel: the channel of a multi-channel recording to keep, or the mean of all.
      max_seconds: longest file that is accepted; if the header gives the length, a longer file is not decoded.

    Returns:
      The waveform, nominally in [-1, 1], with at least one sample, all finite. It may share memory with the source.

    Raises:
      AudioError: the source can't be reached or decoded, is truncated, empty or too long, has samples that are not
        finite or not scaled, or its rate is outside 100 Hz to 1 MHz. The length of an MP3 without a length header, and
        of a FLAC or WAV that was written to a pipe, is unknown; such a file is found truncated only if it ends within
        a frame.
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
    """Does what `load_audio` does, but returns a recording longer than `longest` seconds as a `LongAudio`.

    The stream of a path keeps nothing in memory. The bytes of an encoded file, of a URL or of an open file are kept,
    and decoded block by block.

    Raises:
      AudioError: as for `load_audio`, if the error is found in the part that is read.
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
    """Reads the recording; returns a `LongAudio` if it is longer than `longest` seconds."""
    if is_dataset_row(source):
        source, sample_rate = unpack_dataset_row(source, sample_rate)  # type: ignore[arg-type]
    name, whole = name_of(source), longest == math.inf
    reader: Callable[[], Generator[Block]]
    # Strings and bytes from a NumPy array have the method `__array__` too.
    if hasattr(source, "__array__") and not isinstance(source, str | bytes):
        array, rate = as_columns(source, name), check_rate(target_rate if sample_rate is None else sample_rate, name)
        step = len(array) if whole else _BLOCK

        def reader() -> Generator[Block]:
            for start in range(0, len(array), step):
                yield rate, pick_channel(to_floats(array[start : start + step]), channel)
    else:
        # Sources that are not ordinary files, such as pipes, can be read only once.
        source_to_read = source
        if not (_is_path(source) and os.path.isfile(source)):
            with _open_source(source, name, whole=whole) as file:
                source_to_read = file.read()

        def reader() -> Generator[Block]:
            with _open_source(source_to_read, name, whole=whole) as file:
                yield from decode(file, name, channel, max_seconds)

    check_rate(target_rate, "target_rate")
    parts, n_samples = [], 0
    for rate, block in (blocks := reader()):
        parts.append(block)
        n_samples += len(block)
        if n_samples > longest * rate:
            blocks.close()
            return LongAudio(name, target_rate, reader)
    return _resample(
        _check_samples(parts[0] if len(parts) == 1 else np.concatenate(parts), name), rate, target_rate, name
    )


@dataclasses.dataclass
class LongAudio:
    """A recording that is too long for memory. Each iteration reads it from its beginning, in blocks at `rate`.

    The samples equal those of `load_audio` bit for bit, because both use the same resampler.

    Attributes:
      name: name for messages.
      rate: sample rate of the blocks in Hz.
      reader: function that yields the stored blocks, with their own sample rate.
      is_silent: whether the samples of the last iteration are silent in the sense of `is_silent`.
    """

    name: str
    rate: int
    reader: Callable[[], Generator[Block]]
    is_silent: bool = False

    def __iter__(self) -> Iterator[Float32[np.ndarray, " _"]]:
        """Yields blocks of samples, none of which is empty.

        Raises:
          AudioError: the recording is damaged, or holds samples that are not finite or not scaled.
        """
        low, high, self.is_silent = math.inf, -math.inf, True
        for block in filter(len, self._blocks()):
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            self.is_silent = high - low < 2 * _FAINT
            yield block

    def _blocks(self) -> Iterator[Float32[np.ndarray, " _"]]:
        stream, position = None, 0
        for rate, block in self.reader():
            samples = _check_samples(block, self.name, position) if len(block) else block.astype(np.float32)
            position += len(block)
            if rate == self.rate:
                yield samples
                continue
            if stream is None:
                import soxr

                stream = soxr.ResampleStream(rate, self.rate, 1, dtype="float32", quality="HQ")
            yield stream.resample_chunk(samples)
        if stream is not None:
            yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _resample(
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
    """Whether there is no signal: all samples lie within half a step of 16 bits around a constant."""
    return bool(waveform.size == 0 or float(waveform.max()) - float(waveform.min()) < 2 * _FAINT)


def _check_samples(
    samples: Shaped[np.ndarray, " samples"], name: str, first: int = 0
) -> Float32[np.ndarray, " samples"]:
    """Returns the samples as float32, or raises an AudioError that names one; `first` is the index of the first."""
    if samples.size == 0:
        raise AudioError(f"{name}: no samples in it (an unfinished recording?); give one with sound")
    if not np.isfinite(samples).all():
        index = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise AudioError(
            f"{name}: sample {first + index} is {samples[index]}; repair or cut out samples that are not finite"
        )
    peak = float(np.abs(samples).max())
    if peak >= _UNSCALED:
        raise AudioError(f"{name}: samples reach {peak:g}, so they look like unscaled integers; divide by 32768")
    return samples.astype(np.float32, copy=False)


def _is_path(source: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(source, os.PathLike) or (isinstance(source, str) and not _URL.match(source))


def _open_source(source: object, name: str, *, whole: bool) -> io.BufferedIOBase:
    """Opens the audio file, or reads it into memory; refuses a file that is too large to be decoded as a `whole`."""
    try:
        if isinstance(source, str) and _URL.match(source):
            from ecapa_jax.hub.http import fetch  # urllib takes long to import

            return io.BytesIO(fetch(source))
        if isinstance(source, str | os.PathLike):
            return _make_seekable(open_binary(source, name), name, whole=whole)
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


def _make_seekable(file: io.BufferedIOBase, name: str, *, whole: bool) -> io.BufferedIOBase:
    """Returns the file, or the content of a file that is not seekable."""
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode):
        if whole and status.st_size > _MAX_BYTES:
            file.close()
            raise AudioError(f"{name}: is larger than {_MAX_BYTES / 2**30:g} GiB; cut it into parts")
        return file
    with file:
        return io.BytesIO(read_stream(file, name))
