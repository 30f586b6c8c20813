"""Detects speech in recordings of any kind and length."""

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
"""Number of frames, 65 s, up to which NumPy is faster than a compilation."""

_FRAMES = 1024  # frames of a part of a long recording

_advance = jax.jit(network.advance)


def speech_segments(
    recording: AudioSource,
    threshold: float = 0.5,
    *,
    sample_rate: int | str | None = None,
    channel: Channel = "mean",
    **options: Any,
) -> list[Segment]:
    """Finds the segments of a recording in which somebody speaks. A long file is read in parts.

    Args:
      recording: path, http(s) URL, bytes, binary file, or an array [samples] or [samples, channels].
      threshold: a frame at this speech probability or above begins a segment.
      sample_rate: sample rate of an array, Hz; None means 16 kHz.
      channel: which channel to use if there are several: the first, their mean, or a number from 0.
      **options: other fields of `SegmentOptions`: `min_speech_duration_ms`, `min_silence_duration_ms`,
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
    """Computes the speech probability of each 32 ms of a recording. A long file is read in parts.

    Args:
      recording, sample_rate, channel: as for `speech_segments`.

    Returns:
      The probabilities [frames], and the number of samples at 16 kHz. The last frame is padded with zeros.

    Raises:
      AudioError: the recording can't be read.
    """
    longest = LONGEST_IN_NUMPY * FRAME / RATE
    audio = open_audio(recording, sample_rate=sample_rate, target_rate=RATE, channel=channel, longest=longest)
    return stream_probabilities(audio if isinstance(audio, LongAudio) else [audio])


def stream_probabilities(
    blocks: Iterable[Float32[np.ndarray, " _"]],
) -> tuple[Float32[np.ndarray, " frames"], int]:
    """Does what `recording_probabilities` does, for consecutive samples at 16 kHz in blocks of any length."""
    found = list(iterate_probabilities(blocks))
    if not found:
        return np.zeros(0, np.float32), 0
    return np.concatenate([probabilities for probabilities, _ in found]), sum(n_samples for _, n_samples in found)


def iterate_probabilities(
    blocks: Iterable[Float32[np.ndarray, " _"]], frames: int | None = None
) -> Iterator[tuple[Float32[np.ndarray, " frames"], int]]:
    """Computes probabilities part by part, so that the caller can stop early.

    The first `LONGEST_IN_NUMPY` frames are computed by NumPy, later frames by JAX.

    Args:
      blocks: consecutive samples at 16 kHz, in blocks of any length.
      frames: number of frames in a part; None means 1024, 33 s.

    Yields:
      The probabilities of a part, and its number of samples.
    """
    weights, state, n_frames = packaged_weights(), network.initial_state(1), 0
    size = (frames or _FRAMES) * FRAME
    for part in _split_into_parts(blocks, size):
        samples = np.pad(part, (0, -len(part) % FRAME))
        n_frames += len(samples) // FRAME
        if n_frames <= LONGEST_IN_NUMPY:
            probabilities, state = in_numpy.advance(weights, samples, state)
        else:
            # All parts have one shape, because another shape for the last part would be compiled for it alone.
            padded = np.pad(samples, (0, size - len(samples)))
            row, state = _advance(_weights_on_device(), jax.device_put(padded[None]), jax.device_put(state))
            probabilities = np.asarray(jax.device_get(row))[0, : len(samples) // FRAME]
        yield probabilities, len(part)


def resample_to_network(
    audio: Float32[np.ndarray, " samples"] | LongAudio, rate: int
) -> Iterable[Float32[np.ndarray, " _"]]:
    """Resamples a recording that was opened at `rate` to 16 kHz, and returns its samples in blocks."""
    if isinstance(audio, LongAudio):
        return LongAudio(audio.name, RATE, audio.reader)
    if rate == RATE:
        return [audio]
    return [load_audio(audio, sample_rate=rate, target_rate=RATE, channel="first")]


@functools.cache
def _weights_on_device() -> Any:
    return jax.device_put(packaged_weights())


def _split_into_parts(blocks: Iterable[Float32[np.ndarray, " _"]], size: int) -> Iterator[Float32[np.ndarray, " _"]]:
    """Splits samples into parts of `size` samples; the last part may be shorter."""
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
