"""Where somebody speaks, and where the voice changes, before anybody knows who: 10 ms frames of a whole recording."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64
from scipy.optimize import linear_sum_assignment

from ecapa_jax.audio.windows import cut
from ecapa_jax.diarization import segmentation
from ecapa_jax.diarization.settings import FRAMES_A_SECOND

CHUNK = segmentation.CHUNK_SAMPLES * FRAMES_A_SECOND // segmentation.RATE
"""10 ms frames of a chunk."""

_SAME_VOICE = 0.5
"""Least share of common frames by which voices of two chunks that overlap are one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Voices:
    """What overlap detection hears, chunk by chunk.

    Attributes:
      starts: first 10 ms frame of each chunk, rising.
      active: which of a chunk's voices speak in each of its frames.
      n_frames: of the recording.
    """

    starts: Int64[np.ndarray, " chunks"]
    active: Bool[np.ndarray, "chunks frames voices"]
    n_frames: int

    def speech(self) -> Float32[np.ndarray, " frames"]:
        """Share of the chunks around each frame in which somebody speaks."""
        return self._mean(self.active.any(axis=2))

    def counts(self) -> Float32[np.ndarray, " frames"]:
        """Mean number of voices over the chunks around each frame."""
        return self._mean(self.active.sum(axis=2, dtype=np.uint8))

    def _mean(self, values: np.ndarray) -> Float32[np.ndarray, " frames"]:
        total = np.zeros(self.n_frames, np.float32)
        weight = np.full(self.n_frames, 1e-6, np.float32)
        window = chunk_weights()
        for start, row in zip(self.starts, values, strict=True):
            end = min(start + CHUNK, self.n_frames)
            total[start:end] += row[: end - start] * window[: end - start]
            weight[start:end] += window[: end - start]
        return total / weight

    def tracks(self) -> Int64[np.ndarray, " frames"]:
        """The voice that alone speaks in each frame, numbered through the recording; -1 for none, -2 for several.

        Voices of neighbouring chunks get one number where they speak at the same time. A number that ends may come
        again as another: it tells where the voice changes, not who speaks.
        """
        result = np.full(self.n_frames, -1, np.int64)
        numbers = np.arange(segmentation.VOICES)
        following = segmentation.VOICES
        for index, start in enumerate(self.starts):
            if index:
                numbers, following = self._continued(index, numbers, following)
            first = start if index == 0 else (self.starts[index - 1] + CHUNK + start) // 2
            last = self.n_frames if index + 1 == len(self.starts) else (start + CHUNK + self.starts[index + 1]) // 2
            last = min(last, self.n_frames, start + CHUNK)
            active = self.active[index, first - start : last - start]
            alone = np.where(active.any(axis=1), numbers[active.argmax(axis=1)], -1)
            result[first:last] = np.where(active.sum(axis=1) > 1, -2, alone)
        return result

    def _continued(
        self, index: int, numbers: Int64[np.ndarray, " voices"], following: int
    ) -> tuple[Int64[np.ndarray, " voices"], int]:
        """Numbers of a chunk's voices: those of the chunk before where they speak together, else new ones."""
        shift = int(self.starts[index] - self.starts[index - 1])
        before, here = self.active[index - 1, shift:], self.active[index, : max(CHUNK - shift, 0)]
        both = (before[:, :, None] & here[:, None, :]).sum(axis=0)
        either = (before[:, :, None] | here[:, None, :]).sum(axis=0)
        share = both / np.maximum(either, 1)
        result = np.arange(following, following + segmentation.VOICES)
        for old, new in zip(*linear_sum_assignment(-share), strict=True):
            if share[old, new] > _SAME_VOICE:
                result[new] = numbers[old]
        return result, following + segmentation.VOICES


def chunk_weights() -> Float32[np.ndarray, " frames"]:
    """How much each frame of a chunk counts: those at its ends are heard with less around them."""
    return np.hamming(CHUNK).astype(np.float32)


def hear_voices(
    segmenter: segmentation.Segmenter, blocks: Iterable[Float32[np.ndarray, " _"]], hop: float
) -> tuple[Voices, int]:
    """Runs overlap detection over a recording; returns what it hears and the number of samples.

    Args:
      segmenter: the network.
      blocks: consecutive samples at 16 kHz.
      hop: seconds from one chunk to the next; the last chunk ends with the recording.
    """
    starts: list[int] = []
    n_samples = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal n_samples
        for block in blocks:
            n_samples += len(block)
            yield block

    def chunks() -> Iterator[np.ndarray]:
        for start, samples in cut(counted(), segmentation.CHUNK_SAMPLES, round(hop * segmentation.RATE)):
            starts.append(start)
            yield samples

    samples_a_frame = segmentation.RATE // FRAMES_A_SECOND
    centres = np.arange(CHUNK) * samples_a_frame + samples_a_frame // 2
    nearest = np.rint((centres - segmentation.RECEPTIVE_SAMPLES / 2) / segmentation.FRAME_SAMPLES).astype(int)
    nearest = np.clip(nearest, 0, segmentation.CHUNK_FRAMES - 1)
    active = [segmentation.active_voices(rows.argmax(axis=-1))[nearest] for rows in segmenter(chunks())]
    frames = -(-n_samples // samples_a_frame)
    stacked = np.stack(active) if active else np.zeros((0, CHUNK, segmentation.VOICES), bool)
    return Voices(np.array(starts, np.int64) // samples_a_frame, stacked, frames), n_samples


def runs(values: Int64[np.ndarray, " frames"]) -> list[tuple[int, int, int]]:
    """First frame, frame after the last, and value of each stretch of equal values."""
    if not len(values):
        return []
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(values)]
    return [(start, end, int(values[start])) for start, end in zip(starts, ends, strict=True)]


def cut_windows(stretches: Sequence[tuple[int, int]], window: int, hop: int) -> Int64[np.ndarray, "windows 2"]:
    """First frame and frame after the last of windows that cover each stretch; at least one a stretch.

    Args:
      stretches: first frame and frame after the last of speech of one voice.
      window, hop: frames. A stretch's last window ends with it; a shorter stretch is one window.
    """
    found: list[tuple[int, int]] = []
    for start, end in stretches:
        if end - start <= window:
            found.append((start, end))
            continue
        begins = list(range(start, end - window + 1, hop))
        if begins[-1] + window < end:
            begins.append(end - window)
        found += [(begin, begin + window) for begin in begins]
    return np.array(found, np.int64).reshape(-1, 2)
