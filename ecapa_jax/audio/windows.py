"""A recording cut into windows that overlap, in the memory of one of them."""

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
    """A recording window by window.

    Attributes:
      embeddings: [n, D], one a window.
      starts: [n], seconds at which each window begins.
      mean: [D], of the embeddings.
    """

    embeddings: Float32[np.ndarray, "n embedding"]
    starts: Float64[np.ndarray, " n"]
    mean: Float32[np.ndarray, " embedding"]


def samples_of(window: float, hop: float, rate: int, minimum: int) -> tuple[int, int]:
    """Window and hop in samples.

    Args:
      window, hop: seconds.
      rate: of the samples, Hz.
      minimum: fewest samples that can be embedded.

    Raises:
      ConfigError: a window is shorter than that, or not a number, or the hop leaves samples out.
    """
    if not (math.isfinite(window) and window * rate >= minimum):
        raise ConfigError(f"a window of {window:g} s is too short: this model needs {minimum / rate:g} s at least")
    if not (0 < hop <= window and round(hop * rate) > 0):
        raise ConfigError(f"the hop is {hop:g} s; it must be above 0 and at most the window, {window:g} s")
    return round(window * rate), round(hop * rate)


def cut(blocks: Iterable[Waveform], size: int, hop: int) -> Iterator[tuple[int, Waveform]]:
    """First sample and samples of each window.

    Windows begin every `hop` samples as long as they are whole. If samples are left after the last, one more window
    ends with the recording; a recording shorter than a window is one window. So every sample is in a window, and all
    windows of a recording are equally long.

    Args:
      blocks: consecutive samples, in parts of any length; read once.
      size, hop: samples.
    """
    held, at, start, n_samples = np.zeros(0, np.float32), 0, 0, 0
    for block in blocks:
        n_samples += len(block)
        held = np.concatenate([held, block])
        while start + size <= n_samples:
            yield start, held[start - at : start - at + size]
            start += hop
        # What the last window of all may still need.
        first = max(min(start, n_samples - size), at)
        held, at = held[first - at :], first
    if n_samples and (start == 0 or start - hop + size < n_samples):
        first = max(n_samples - size, 0)
        yield first, held[first - at :]


def embed_windows(embed_stream: Stream, blocks: Iterable[Waveform], size: int, hop: int, rate: int) -> Windows:
    """One embedding a window, and their mean.

    Args:
      embed_stream: as `SpeakerEncoder.embed_stream`.
      blocks, size, hop: as for `cut`.
      rate: of the samples, Hz.
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
