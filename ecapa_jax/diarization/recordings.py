"""Reads a recording several times, at the sample rates of several networks, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float32, Int64

from ecapa_jax.audio.decoding import Channel
from ecapa_jax.audio.load import AudioSource, LongAudio, open_audio
from ecapa_jax.diarization.settings import FRAMES_A_SECOND

LONGEST_HELD = 1200.0
"""Longest recording in seconds that is kept in memory; a longer one is decoded again for each network."""


class RereadableRecording:
    """A recording whose samples can be read any number of times.

    Attributes:
      source: path, URL, bytes or array; an open file is read once, and its bytes are kept.
    """

    def __init__(self, source: AudioSource, sample_rate: int | str | None, channel: Channel):
        self.source: AudioSource = source.read() if hasattr(source, "read") else source
        self._sample_rate, self._channel = sample_rate, channel
        self._opened: dict[int, np.ndarray | LongAudio] = {}

    def blocks(self, rate: int) -> Iterable[Float32[np.ndarray, " _"]]:
        """Returns the samples at a sample rate, in blocks of any length.

        Raises:
          AudioError: the source can't be read, or some samples are not finite.
        """
        if rate not in self._opened:
            self._opened[rate] = open_audio(
                self.source,
                sample_rate=self._sample_rate,
                target_rate=rate,
                channel=self._channel,
                longest=LONGEST_HELD,
            )
        audio = self._opened[rate]
        return audio if isinstance(audio, LongAudio) else [audio]


def span_samples(
    blocks: Iterable[Float32[np.ndarray, " _"]], spans: Int64[np.ndarray, "windows 2"], rate: int, minimum: int
) -> Iterator[Float32[np.ndarray, " samples"]]:
    """Yields the samples of each span, in order; repeats the samples of a span with fewer than `minimum` samples.

    Args:
      blocks: consecutive samples at `rate`.
      spans: first frame, and frame after the last, of each span, in frames of 10 ms; starts must not decrease.
      rate: sample rate in Hz.
      minimum: smallest number of samples to yield for a span.
    """
    bounds = spans * rate // FRAMES_A_SECOND
    held, first, row = np.zeros(0, np.float32), 0, 0
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else block
        while row < len(bounds) and bounds[row, 1] <= first + len(held):
            yield repeat_samples(held[bounds[row, 0] - first : bounds[row, 1] - first], minimum)
            row += 1
        if row == len(bounds):
            return
        drop = min(max(int(bounds[row, 0]) - first, 0), len(held))
        held, first = held[drop:], first + drop
    for start, end in bounds[row:]:
        yield repeat_samples(held[max(start - first, 0) : max(end - first, 1)], minimum)


def repeat_samples(samples: np.ndarray, minimum: int) -> np.ndarray:
    """Repeats samples until there are `minimum`."""
    if len(samples) >= minimum:
        return samples
    return np.resize(samples if len(samples) else np.zeros(1, np.float32), minimum)
