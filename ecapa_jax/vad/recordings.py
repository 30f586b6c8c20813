"""Speech in a recording of any kind and length."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from ecapa_jax.audio.decoding import Channel
from ecapa_jax.audio.load import AudioSource, LongAudio, load_audio, open_audio
from ecapa_jax.vad import in_numpy, network
from ecapa_jax.vad.network import FRAME, RATE
from ecapa_jax.vad.segments import Segment, SegmentOptions, segments_from_probabilities
from ecapa_jax.vad.weights import packaged_weights

LONGEST_IN_NUMPY = 2048
"""Frames, 65 s: up to here NumPy is done before a compiler is."""

_FRAMES = 1024  # of a part of a long recording

_advance = jax.jit(network.advance)


def speech_segments(
    recording: AudioSource,
    threshold: float = 0.5,
    *,
    sample_rate: int | str | None = None,
    channel: Channel = "mean",
    **options: Any,
) -> list[Segment]:
    """Finds the segments of a recording in which somebody speaks; of a long file memory holds a part.

    Args:
      recording: path, http(s) URL, bytes, binary file, or an array [samples] or [samples, channels].
      threshold: a frame at this speech probability or above begins a segment.
      sample_rate: of an array, Hz; None means 16 kHz.
      channel: of several, the first or their mean.
      **options: the other fields of `SegmentOptions`: `min_speech_duration_ms`, `min_silence_duration_ms`,
        `speech_pad_ms`, `neg_threshold`, `max_speech_duration_s`.

    Returns:
      Segments in order, in seconds.

    Raises:
      AudioError: the recording can't be read.
      ConfigError: an option is out of its range.
    """
    chosen = SegmentOptions(threshold=threshold, **options)
    probabilities, n_samples = recording_probabilities(recording, sample_rate=sample_rate, channel=channel)
    return segments_from_probabilities(probabilities, n_samples, chosen)


def recording_probabilities(
    recording: AudioSource, *, sample_rate: int | str | None = None, channel: Channel = "mean"
) -> tuple[Float32[np.ndarray, " frames"], int]:
    """Computes the speech probability of each 32 ms of a recording; of a long file memory holds a part.

    Args:
      recording, sample_rate, channel: as for `speech_segments`.

    Returns:
      [frames], and the number of samples at 16 kHz; the last frame is filled up with zeros.

    Raises:
      AudioError: the recording can't be read.
    """
    longest = LONGEST_IN_NUMPY * FRAME / RATE
    audio = open_audio(recording, sample_rate=sample_rate, target_rate=RATE, channel=channel, longest=longest)
    return stream_probabilities(audio if isinstance(audio, LongAudio) else [audio])


def stream_probabilities(
    blocks: Iterable[Float32[np.ndarray, " _"]],
) -> tuple[Float32[np.ndarray, " frames"], int]:
    """As `recording_probabilities`, of consecutive samples at 16 kHz in parts of any length."""
    found = list(iterate_probabilities(blocks))
    if not found:
        return np.zeros(0, np.float32), 0
    return np.concatenate([probabilities for probabilities, _ in found]), sum(n_samples for _, n_samples in found)


def iterate_probabilities(
    blocks: Iterable[Float32[np.ndarray, " _"]], frames: int | None = None
) -> Iterator[tuple[Float32[np.ndarray, " frames"], int]]:
    """Computes probabilities part by part, so that whoever has heard enough can stop.

    The first `LONGEST_IN_NUMPY` frames run in NumPy, what follows in JAX.

    Args:
      blocks: consecutive samples at 16 kHz, in parts of any length.
      frames: of a part; None means 1024, 33 s.

    Yields:
      The probabilities of a part, and its number of samples.
    """
    weights, state, n_frames = packaged_weights(), network.initial_state(1), 0
    size = (frames or _FRAMES) * FRAME
    for part in _parts(blocks, size):
        samples = np.pad(part, (0, -len(part) % FRAME))
        n_frames += len(samples) // FRAME
        if n_frames <= LONGEST_IN_NUMPY:
            probabilities, state = in_numpy.advance(weights, samples, state)
        else:
            # One shape for all parts: that of the last would be compiled for it alone.
            filled = np.pad(samples, (0, size - len(samples)))
            row, state = _advance(_placed_weights(), jax.device_put(filled[None]), jax.device_put(state))
            probabilities = np.asarray(jax.device_get(row))[0, : len(samples) // FRAME]
        yield probabilities, len(part)


def at_network_rate(
    audio: Float32[np.ndarray, " samples"] | LongAudio, rate: int
) -> Iterable[Float32[np.ndarray, " _"]]:
    """The samples of a recording that has been opened at `rate`, resampled to 16 kHz, in blocks."""
    if isinstance(audio, LongAudio):
        return LongAudio(audio.name, RATE, audio.reader)
    if rate == RATE:
        return [audio]
    return [load_audio(audio, sample_rate=rate, target_rate=RATE, channel="first")]


@functools.cache
def _placed_weights() -> Any:
    return jax.device_put(packaged_weights())


def _parts(blocks: Iterable[Float32[np.ndarray, " _"]], size: int) -> Iterator[Float32[np.ndarray, " _"]]:
    """The same samples in parts of `size`; the last may be shorter."""
    held: list[np.ndarray] = []
    n_held = 0
    for block in blocks:
        held.append(block)
        n_held += len(block)
        if n_held >= size:
            samples = np.concatenate(held)
            whole = n_held - n_held % size
            yield from samples[:whole].reshape(-1, size)
            held, n_held = [samples[whole:]], n_held - whole
    if n_held:
        yield np.concatenate(held)
