"""Finds speech and changes of voice in a whole recording, in frames of 10 ms, before the speakers are known."""

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
"""Number of 10 ms frames in a chunk."""

_SAME_VOICE = 0.5
"""Voices of two overlapping chunks are one voice if they share more than this part of the frames of both."""


@dataclasses.dataclass(frozen=True, eq=False)
class Voices:
    """The voices that overlap detection hears, chunk by chunk.

    Attributes:
      starts: first 10 ms frame of each chunk, in ascending order.
      active: which of a chunk's voices speak in each of its frames.
      n_frames: number of frames in the recording.
    """

    starts: Int64[np.ndarray, " chunks"]
    active: Bool[np.ndarray, "chunks frames voices"]
    n_frames: int

    def speech(self) -> Float32[np.ndarray, " frames"]:
        """Returns the share of the chunks around each frame in which somebody speaks."""
        return self._average_chunks(np.asarray(np.any(self.active, axis=2)))

    def counts(self) -> Float32[np.ndarray, " frames"]:
        """Returns the mean number of voices over the chunks around each frame."""
        return self._average_chunks(self.active.sum(axis=2, dtype=np.uint8))

    def _average_chunks(self, values: np.ndarray) -> Float32[np.ndarray, " frames"]:
        total = np.zeros(self.n_frames, np.float32)
        weight = np.full(self.n_frames, 1e-6, np.float32)
        window = chunk_weights()
        for start, row in zip(self.starts, values, strict=True):
            end = min(start + CHUNK, self.n_frames)
            total[start:end] += row[: end - start] * window[: end - start]
            weight[start:end] += window[: end - start]
        return total / weight

    def tracks(self) -> Int64[np.ndarray, " frames"]:
        """Returns the number of the only voice in each frame: -1 if there is no voice, -2 if there are several.

        Voices of neighbouring chunks have the same number if they speak at the same time. One person may have several
        numbers in a recording: the numbers show where the voice changes, not who speaks.
        """
        result = np.full(self.n_frames, -1, np.int64)
        numbers = np.arange(segmentation.VOICES)
        next_number = segmentation.VOICES
        for index, start in enumerate(self.starts):
            if index:
                numbers, next_number = self._number_voices(index, numbers, next_number)
            first = start if index == 0 else (self.starts[index - 1] + CHUNK + start) // 2
            last = self.n_frames if index + 1 == len(self.starts) else (start + CHUNK + self.starts[index + 1]) // 2
            last = min(last, self.n_frames, start + CHUNK)
            active = self.active[index, first - start : last - start]
            alone = np.where(active.any(axis=1), numbers[active.argmax(axis=1)], -1)
            result[first:last] = np.where(active.sum(axis=1) > 1, -2, alone)
        return result

    def _number_voices(
        self, index: int, numbers: Int64[np.ndarray, " voices"], next_number: int
    ) -> tuple[Int64[np.ndarray, " voices"], int]:
        """Numbers the voices of a chunk: as in the chunk before if they speak at the same time, otherwise anew.

        Returns:
          The numbers, and the next number that is free.
        """
        shift = int(self.starts[index] - self.starts[index - 1])
        earlier, later = self.active[index - 1, shift:], self.active[index, : max(CHUNK - shift, 0)]
        together = (earlier[:, :, None] & later[:, None, :]).sum(axis=0)
        either = (earlier[:, :, None] | later[:, None, :]).sum(axis=0)
        share = together / np.maximum(either, 1)
        result = np.arange(next_number, next_number + segmentation.VOICES)
        for old, new in zip(*linear_sum_assignment(-share), strict=True):
            if share[old, new] > _SAME_VOICE:
                result[new] = numbers[old]
        return result, next_number + segmentation.VOICES


def chunk_weights() -> Float32[np.ndarray, " frames"]:
    """Returns the weight of each frame of a chunk: frames near its ends count less, because less surrounds them."""
    return np.hamming(CHUNK).astype(np.float32)


def hear_voices(
    segmenter: segmentation.Segmenter, blocks: Iterable[Float32[np.ndarray, " _"]], hop: float
) -> tuple[Voices, int]:
    """Runs overlap detection over a recording.

    Args:
      segmenter: the network.
      blocks: consecutive samples at 16 kHz.
      hop: seconds from one chunk to the next; the last chunk ends with the recording.

    Returns:
      The voices, and the number of samples in the recording.
    """
    starts: list[int] = []
    n_samples = 0

    def count_samples() -> Iterator[np.ndarray]:
        nonlocal n_samples
        for block in blocks:
            n_samples += len(block)
            yield block

    def cut_chunks() -> Iterator[np.ndarray]:
        for start, samples in cut(count_samples(), segmentation.CHUNK_SAMPLES, round(hop * segmentation.RATE)):
            starts.append(start)
            yield samples

    samples_a_frame = segmentation.RATE // FRAMES_A_SECOND
    centres = np.arange(CHUNK) * samples_a_frame + samples_a_frame // 2
    nearest = np.rint((centres - segmentation.RECEPTIVE_SAMPLES / 2) / segmentation.FRAME_SAMPLES).astype(int)
    nearest = np.clip(nearest, 0, segmentation.CHUNK_FRAMES - 1)
    active = [segmentation.active_voices(rows.argmax(axis=-1))[nearest] for rows in segmenter(cut_chunks())]
    frames = -(-n_samples // samples_a_frame)
    stacked = np.stack(active) if active else np.zeros((0, CHUNK, segmentation.VOICES), bool)
    return Voices(np.array(starts, np.int64) // samples_a_frame, stacked, frames), n_samples


def runs(values: Int64[np.ndarray, " frames"]) -> list[tuple[int, int, int]]:
    """Returns the first frame, the frame after the last, and the value of each stretch of equal values."""
    if not len(values):
        return []
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(values)]
    return [(start, end, int(values[start])) for start, end in zip(starts, ends, strict=True)]


def cut_windows(stretches: Sequence[tuple[int, int]], window: int, hop: int) -> Int64[np.ndarray, "windows 2"]:
    """Cuts stretches into windows that cover them.

    Args:
      stretches: first frame, and frame after the last, of each stretch of speech.
      window, hop: length of a window, and distance from one window to the next, in frames. The last window of a stretch
        ends with it; a stretch that is shorter than a window is one window.

    Returns:
      The first frame, and the frame after the last, of each window.
    """
    windows: list[tuple[int, int]] = []
    for start, end in stretches:
        if end - start <= window:
            windows.append((start, end))
            continue
        starts = list(range(start, end - window + 1, hop))
        if starts[-1] + window < end:
            starts.append(end - window)
        windows += [(first, first + window) for first in starts]
    return np.array(windows, np.int64).reshape(-1, 2)
