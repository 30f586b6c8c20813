"""A recording that is read several times, at the rates of several networks, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float32, Int64

from ecapa_jax.audio.decoding import Channel
from ecapa_jax.audio.load import AudioSource, LongAudio, open_audio
from ecapa_jax.diarization.settings import FRAMES_A_SECOND

LONGEST_HELD = 1200.0
"""Seconds; a longer recording is decoded anew for each network."""


class RereadableRecording:
    """A source of audio that gives its samples as often as they are needed.

    Attributes:
      source: path, URL, bytes or array; an open file is read once and kept as bytes.
    """

    def __init__(self, source: AudioSource, sample_rate: int | str | None, channel: Channel):
        self.source: AudioSource = source.read() if hasattr(source, "read") else source
        self._sample_rate, self._channel = sample_rate, channel
        self._opened: dict[int, np.ndarray | LongAudio] = {}

    def blocks(self, rate: int) -> Iterable[Float32[np.ndarray, " _"]]:
        """The samples at a rate, in parts of any length.

        Raises:
          AudioError: the source can't be read, or holds samples that are not finite.
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
    """The samples of each span, in the order given; what is shorter than `minimum` is repeated until it is long enough.

    Args:
      blocks: consecutive samples at `rate`.
      spans: first frame and frame after the last, 10 ms each; starts must not fall.
      rate: Hz.
      minimum: samples.
    """
    bounds = spans * rate // FRAMES_A_SECOND
    held, at, row = np.zeros(0, np.float32), 0, 0
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else block
        while row < len(bounds) and bounds[row, 1] <= at + len(held):
            yield long_enough(held[bounds[row, 0] - at : bounds[row, 1] - at], minimum)
            row += 1
        if row == len(bounds):
            return
        drop = min(max(int(bounds[row, 0]) - at, 0), len(held))
        held, at = held[drop:], at + drop
    for start, end in bounds[row:]:
        yield long_enough(held[max(start - at, 0) : max(end - at, 1)], minimum)


def long_enough(samples: np.ndarray, minimum: int) -> np.ndarray:
    """Repeats samples until there are `minimum`."""
    if len(samples) >= minimum:
        return samples
    return np.resize(samples if len(samples) else np.zeros(1, np.float32), minimum)
