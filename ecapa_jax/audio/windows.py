"""Cuts a recording into overlapping windows, of which only one is in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Float32, Float64

from ecapa_jax.errors import ConfigError

Waveform = Float32[np.ndarray, " _"]
Stream = Callable[[Iterable[Waveform]], Iterator[tuple[tuple[int, ...], Float32[np.ndarray, "rows embedding"]]]]


@dataclasses.dataclass(frozen=True)
class Windows:
    """The embeddings of the windows of a recording.

    Attributes:
      embeddings: [n, D], embedding of each window.
      starts: [n], beginning of each window in seconds.
      mean: [D], mean of the embeddings.
    """

    embeddings: Float32[np.ndarray, "n embedding"]
    starts: Float64[np.ndarray, " n"]
    mean: Float32[np.ndarray, " embedding"]


def samples_of(window: float, hop: float, rate: int, minimum: int) -> tuple[int, int]:
    """Converts window and hop from seconds to samples.

    Args:
      window, hop: length of a window, and distance from one window to the next, in seconds.
      rate: sample rate in Hz.
      minimum: smallest number of samples that can be embedded.

    Raises:
      ConfigError: the window is too short or not finite, or the hop is not positive or longer than the window.
    """
    if not (math.isfinite(window) and window * rate >= minimum):
        raise ConfigError(f"a window of {window:g} s is too short: this model needs {minimum / rate:g} s at least")
    if not (0 < hop <= window and round(hop * rate) > 0):
        raise ConfigError(f"the hop is {hop:g} s; it must be above 0 and at most the window, {window:g} s")
    return round(window * rate), round(hop * rate)


def cut(blocks: Iterable[Waveform], size: int, hop: int) -> Iterator[tuple[int, Waveform]]:
    """Yields the first sample and the samples of each window.

    A window begins every `hop` samples, until less than a whole window is left. If samples remain after the last
    window, one more window ends with the recording. A recording that is shorter than a window is one window. So every
    sample is in a window, and all windows of a recording have the same length.

    Args:
      blocks: consecutive samples, in blocks of any length; read once.
      size, hop: length of a window, and distance from one window to the next, in samples.
    """
    held, position, start, n_samples = np.zeros(0, np.float32), 0, 0, 0
    for block in blocks:
        n_samples += len(block)
        held = np.concatenate([held, block])
        while start + size <= n_samples:
            yield start, held[start - position : start - position + size]
            start += hop
        # The last window of the recording may begin here.
        first = max(min(start, n_samples - size), position)
        held, position = held[first - position :], first
    if n_samples and (start == 0 or start - hop + size < n_samples):
        first = max(n_samples - size, 0)
        yield first, held[first - position :]


def embed_windows(embed_stream: Stream, blocks: Iterable[Waveform], size: int, hop: int, rate: int) -> Windows:
    """Embeds the windows of a recording, and averages the embeddings.

    Args:
      embed_stream: `SpeakerEncoder.embed_stream`, or a function like it.
      blocks, size, hop: as for `cut`.
      rate: sample rate in Hz.
    """
    starts: list[int] = []

    def waveforms() -> Iterator[Waveform]:
        for start, samples in cut(blocks, size, hop):
            starts.append(start)
            yield samples

    rows = {index: row for indices, part in embed_stream(waveforms()) for index, row in zip(indices, part, strict=True)}
    embeddings = np.stack([rows[index] for index in range(len(rows))])
    return Windows(
        embeddings, np.array(starts, np.float64) / rate, embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    )
