"""Cuts silence out of recordings."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from jaxtyping import Float32

from ecapa_jax.audio.decoding import Block
from ecapa_jax.audio.load import LongAudio
from ecapa_jax.vad.recordings import resample_to_network, stream_probabilities
from ecapa_jax.vad.segments import Segment, segments_from_probabilities


def cut_silence(
    audio: Float32[np.ndarray, " samples"] | LongAudio, rate: int
) -> Float32[np.ndarray, " speech"] | LongAudio | None:
    """Joins the segments of a recording in which somebody speaks.

    Args:
      audio: an opened recording. A recording that is too long for memory is read again here, and each time the result
        is iterated.
      rate: sample rate in Hz.

    Returns:
      A recording of the same kind, without the parts between the segments; None if there is no speech.

    Raises:
      AudioError: a long recording is damaged.
    """
    segments = segments_from_probabilities(*stream_probabilities(resample_to_network(audio, rate)))
    if not segments:
        return None
    if isinstance(audio, LongAudio):
        return LongAudio(audio.name, audio.rate, lambda: _cut_blocks(audio, segments))
    return np.concatenate([audio[round(start * rate) : round(end * rate)] for start, end in segments])


def _cut_blocks(audio: LongAudio, segments: Sequence[Segment]) -> Generator[Block]:
    """Yields the blocks of a recording at their own sample rate, without the parts between the segments."""
    position, remaining = 0, list(segments)
    for rate, block in audio.reader():
        kept = np.zeros(len(block), bool)
        for start, end in remaining:
            first, last = round(start * rate) - position, round(end * rate) - position
            if first >= len(block):
                break
            kept[max(first, 0) : max(last, 0)] = True
        position += len(block)
        while remaining and round(remaining[0].end * rate) <= position:
            remaining.pop(0)
        if kept.any():
            yield rate, block[kept]
