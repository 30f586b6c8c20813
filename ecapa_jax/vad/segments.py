"""Finds segments of speech from speech probabilities."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ecapa_jax.errors import ConfigError
from ecapa_jax.vad.network import FRAME, RATE


class Segment(NamedTuple):
    """A stretch of speech.

    Attributes:
      start, end: seconds from the beginning of the recording.
    """

    start: float
    end: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Options for finding segments, with the names and defaults of silero-vad.

    Attributes:
      threshold: a frame with this probability or more begins a segment.
      neg_threshold: frames below this probability may end a segment; None means `threshold` - 0.15, but at least 0.01.
      min_speech_duration_ms: a segment that is not longer than this is dropped.
      min_silence_duration_ms: a pause shorter than this does not end a segment.
      speech_pad_ms: time by which a segment is extended on each side; two segments share a pause that is too short.
      max_speech_duration_s: a longer segment is cut at its longest pause, or at this length if it has no pause.
      min_silence_at_max_speech_ms: a long segment is cut only at pauses longer than this.
    """

    threshold: float = 0.5
    neg_threshold: float | None = None
    min_speech_duration_ms: float = 250.0
    min_silence_duration_ms: float = 100.0
    speech_pad_ms: float = 30.0
    max_speech_duration_s: float = math.inf
    min_silence_at_max_speech_ms: float = 98.0

    def __post_init__(self) -> None:
        for name in ("threshold", "neg_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{name} is {value!r}; it must be above 0 and at most 1")
        for name in ("min_speech_duration_ms", "min_silence_duration_ms", "speech_pad_ms"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value!r}; it must be 0 or more")
        for name in ("max_speech_duration_s", "min_silence_at_max_speech_ms"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name} is {value!r}; it must be above 0")


def segments_from_probabilities(
    probabilities: Float[np.ndarray, " frames"], n_samples: int | None = None, options: SegmentOptions | None = None
) -> list[Segment]:
    """Finds the segments of speech of one recording.

    Args:
      probabilities: speech probabilities of consecutive frames of 512 samples at 16 kHz.
      n_samples: length of the recording; None means that all frames are whole.
      options: None means the defaults.

    Returns:
      The segments in order, without overlaps.

    Reference: silero-vad 6.2, `get_speech_timestamps_from_probs`.
    """
    options = options or SegmentOptions()
    n_samples = len(probabilities) * FRAME if n_samples is None else n_samples
    spans = _pad_spans(_find_spans(probabilities.tolist(), n_samples, options), n_samples, options)
    return [Segment(start / RATE, end / RATE) for start, end in spans]


def _find_spans(probabilities: list[float], n_samples: int, options: SegmentOptions) -> list[tuple[int, int]]:
    """Finds the beginning and end of each segment in samples, before padding."""
    threshold, exit_threshold = options.threshold, options.neg_threshold
    if exit_threshold is None:
        exit_threshold = max(threshold - 0.15, 0.01)
    shortest, pause, cut_pause = (
        RATE * milliseconds / 1000
        for milliseconds in (
            options.min_speech_duration_ms,
            options.min_silence_duration_ms,
            options.min_silence_at_max_speech_ms,
        )
    )
    longest = RATE * options.max_speech_duration_s - FRAME - 2 * RATE * options.speech_pad_ms / 1000
    spans: list[tuple[int, int]] = []
    start: int | None = None  # beginning of the current segment
    quiet_since: int | None = None  # beginning of a pause in it
    pauses: list[tuple[int, int]] = []  # length and beginning of the pauses at which it may be cut
    for index, probability in enumerate(probabilities):
        now = index * FRAME
        if probability >= threshold:
            if quiet_since is not None and now - quiet_since > cut_pause:
                pauses.append((now - quiet_since, quiet_since))
            quiet_since = None
            if start is None:
                start = now
                continue
        if start is None:
            continue
        if now - start > longest:
            if pauses:
                length, begin = max(pauses, key=lambda found: found[0])
                spans.append((start, begin))
                start = begin + length
            else:
                spans.append((start, now))
                start = None
            quiet_since, pauses = None, []
            if start is None:
                continue
        if probability < exit_threshold:
            quiet_since = now if quiet_since is None else quiet_since
            if now - quiet_since >= pause:
                if quiet_since - start > shortest:
                    spans.append((start, quiet_since))
                start, quiet_since, pauses = None, None, []
    if start is not None and n_samples - start > shortest:
        spans.append((start, n_samples))
    return spans


def _pad_spans(spans: list[tuple[int, int]], n_samples: int, options: SegmentOptions) -> list[tuple[int, int]]:
    """Extends segments by the padding; two segments share a pause that is too short for both paddings."""
    pad = RATE * options.speech_pad_ms / 1000
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    if spans:
        starts[0] = int(max(0, starts[0] - pad))
        ends[-1] = int(min(n_samples, ends[-1] + pad))
    for index in range(len(spans) - 1):
        pause = starts[index + 1] - ends[index]
        half = pause // 2 if pause < 2 * pad else pad
        ends[index] = int(min(n_samples, ends[index] + half))
        starts[index + 1] = int(max(0, starts[index + 1] - half))
    return list(zip(starts, ends, strict=True))
