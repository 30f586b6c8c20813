"""Recordings without their silence."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from jaxtyping import Float32

from ecapa_jax.audio.decoding import Block
from ecapa_jax.audio.load import LongAudio
from ecapa_jax.vad.recordings import at_network_rate, stream_probabilities
from ecapa_jax.vad.segments import Segment, segments_from_probabilities


def cut_silence(
    audio: Float32[np.ndarray, " samples"] | LongAudio, rate: int
) -> Float32[np.ndarray, " speech"] | LongAudio | None:
    """Joins the segments of a recording in which somebody speaks.

    Args:
      audio: a recording that has been opened. One that is too long to be held is read once more here, and each time
        the result is iterated.
      rate: of its samples, Hz.

    Returns:
      The same kind of recording without what lies between the segments; None where nobody is heard to speak.

    Raises:
      AudioError: a long recording is damaged.
    """
    segments = segments_from_probabilities(*stream_probabilities(at_network_rate(audio, rate)))
    if not segments:
        return None
    if isinstance(audio, LongAudio):
        return LongAudio(audio.name, audio.rate, lambda: _cut_blocks(audio, segments))
    return np.concatenate([audio[round(start * rate) : round(end * rate)] for start, end in segments])


def _cut_blocks(audio: LongAudio, segments: Sequence[Segment]) -> Generator[Block]:
    """The blocks as they are stored, without what lies between the segments."""
    at, left = 0, list(segments)
    for rate, block in audio.reader():
        kept = np.zeros(len(block), bool)
        for start, end in left:
            first, last = round(start * rate) - at, round(end * rate) - at
            if first >= len(block):
                break
            kept[max(first, 0) : max(last, 0)] = True
        at += len(block)
        while left and round(left[0].end * rate) <= at:
            left.pop(0)
        if kept.any():
            yield rate, block[kept]
