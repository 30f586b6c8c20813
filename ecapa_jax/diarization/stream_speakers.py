"""From windows of a stream to speakers who keep their names when the windows are grouped again."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.optimize import linear_sum_assignment

from ecapa_jax.diarization.clustering import Labels, SpeakerCount, cluster, unit
from ecapa_jax.diarization.settings import StreamSettings

_LIKENESS = 0.6  # cosine of neighbouring windows of one speaker, before there are any
_NEIGHBOURS = 100  # cosines of neighbouring windows that are remembered


class SpeakerTracker:
    """Gives each window of a stream a speaker, a number from 0.

    A new window goes to the speaker whose centroid it is most like, or to a new one. Now and then all open windows are
    grouped by `cluster`. Closed windows keep their speaker; memory holds the sum of each speaker's.

    Attributes:
      spans: first 10 ms frame, and frame after the last, of each open window.
    """

    def __init__(self, most: int, settings: StreamSettings) -> None:
        """Begins a stream.

        Args:
          most: how many speakers there may be.
          settings: thresholds.
        """
        self.spans: list[tuple[int, int]] = []
        self._most, self._settings = most, settings
        self._so_far = dataclasses.replace(settings, fewest_windows=settings.fewest_so_far)
        self._rows: list[np.ndarray] = []
        self._numbers: list[int] = []  # the speaker of each open window
        self._closed: dict[int, tuple[np.ndarray, int]] = {}  # sum and number of each speaker's closed windows
        self._totals: dict[int, np.ndarray] = {}  # sum of each speaker's windows, open and closed
        self._cosines: collections.deque[float] = collections.deque([_LIKENESS], _NEIGHBOURS)
        self._n_new = 0  # windows since they were grouped

    def add(self, span: tuple[int, int], row: Float32[np.ndarray, " embedding"]) -> bool:
        """Takes the next window; returns whether the windows have been grouped again.

        Args:
          span: first frame, and frame after the last.
          row: embedding of length 1.
        """
        number = self._nearest(row)
        if self._numbers and self._numbers[-1] == number:
            self._cosines.append(float(self._rows[-1] @ row))
        self.spans.append(span)
        self._rows.append(row)
        self._numbers.append(number)
        self._totals[number] = self._totals.get(number, 0) + row
        self._n_new += 1
        enough = max(self._settings.regroup_windows, self._settings.regroup_share * len(self.spans))
        if self._n_new < enough and not self.is_full():
            return False
        return self._regroup(self._settings if self.is_full() else self._so_far)

    def is_full(self) -> bool:
        """Whether there are as many open windows as there may be."""
        return len(self.spans) >= self._settings.block_windows

    def finish(self) -> bool:
        """Groups the open windows for the last time; returns whether there are any."""
        return self._regroup(self._settings)

    def _regroup(self, settings: StreamSettings) -> bool:
        """Groups the open windows by speaker; returns whether there are any."""
        if not self._rows:
            return False
        rows = np.stack(self._rows)
        clusters = cluster(rows, np.array(self.spans), SpeakerCount(most=self._most), settings)
        self._numbers = self._names(clusters, rows)[clusters].tolist()
        self._totals = {number: total for number, (total, _) in self._closed.items()}
        for number, row in zip(self._numbers, rows, strict=True):
            self._totals[number] = self._totals.get(number, 0) + row
        self._n_new = 0
        return True

    def close(self, n_windows: int) -> None:
        """Closes the oldest windows: their speakers are final."""
        for number, row in zip(self._numbers[:n_windows], self._rows[:n_windows], strict=True):
            total, count = self._closed.get(number, (np.zeros_like(row), 0))
            self._closed[number] = total + row, count + 1
        for kept in (self.spans, self._rows, self._numbers):
            del kept[:n_windows]

    def cosines(
        self, frame: int
    ) -> tuple[Int64[np.ndarray, " speakers"], Int64[np.ndarray, "windows 2"], Float32[np.ndarray, "windows speakers"]]:
        """Returns the speakers, the spans of the open windows that end after a frame, and their cosines.

        A cosine tells how alike a window is to the centroid of a speaker.
        """
        first = len(self.spans)
        while first and self.spans[first - 1][1] > frame:
            first -= 1
        numbers = sorted(self._totals)
        centroids = unit(np.stack([self._totals[number] for number in numbers]))
        return np.array(numbers), np.array(self.spans[first:]), np.stack(self._rows[first:]) @ centroids.T

    def _nearest(self, row: Float32[np.ndarray, " embedding"]) -> int:
        """The speaker whom a window is most like, or the next free number."""
        if not self._totals:
            return 0
        cosines = {number: float(unit(total) @ row) for number, total in self._totals.items()}
        nearest = max(cosines, key=lambda number: cosines[number])
        least = self._settings.new_speaker * max(float(np.median(self._cosines)), 0.1)
        if cosines[nearest] >= least or len(cosines) >= self._most:
            return nearest
        return _free_number(cosines)

    def _names(
        self, clusters: Labels, rows: Float32[np.ndarray, "windows embedding"]
    ) -> Int64[np.ndarray, " clusters"]:
        """The number of each cluster: that of the speaker with whom it shares most windows, or whom it is like."""
        n_clusters = int(clusters.max()) + 1
        known = sorted({*self._numbers, *self._closed})
        shared = np.zeros((n_clusters, len(known)))
        np.add.at(shared, (clusters, np.searchsorted(known, self._numbers)), 1)
        likeness = self._likeness(clusters, rows, known)
        # A likeness counts less than a window.
        scores = shared + np.where(likeness >= self._settings.same_speaker, np.clip(likeness, 0, 2) / 4, 0)
        result = np.full(n_clusters, -1, np.int64)
        for index, at in zip(*linear_sum_assignment(-scores), strict=True):
            if scores[index, at] > 0:
                result[index] = known[at]
        for index in np.flatnonzero(result < 0):
            used = {*self._closed, *result[result >= 0].tolist()}
            result[index] = _free_number(used) if len(used) < self._most else known[int(likeness[index].argmax())]
        return result

    def _likeness(
        self, clusters: Labels, rows: Float32[np.ndarray, "windows embedding"], known: list[int]
    ) -> Float[np.ndarray, "clusters speakers"]:
        """How alike clusters are to the closed windows of each speaker, on the scale of `same_speaker`.

        It is -1 for a speaker without closed windows.
        """
        totals = np.stack([rows[clusters == index].sum(axis=0) for index in range(clusters.max() + 1)])
        own = _mean_cosine(totals, np.bincount(clusters))
        result = np.full((len(totals), len(known)), -1.0)
        for at, number in enumerate(known):
            if number in self._closed:
                total, count = self._closed[number]
                scale = np.sqrt(own * _mean_cosine(total[None], np.array([count])))
                result[:, at] = totals @ total / (np.bincount(clusters) * count) / scale
        return result


def _mean_cosine(
    totals: Float[np.ndarray, "speakers embedding"], counts: Int64[np.ndarray, " speakers"]
) -> Float[np.ndarray, " speakers"]:
    """The mean cosine between the windows of each speaker, from their sum."""
    pairs = counts * (counts - 1)
    means = (np.sum(totals * totals, axis=1) - counts) / np.maximum(pairs, 1)
    return np.where(pairs > 0, np.maximum(means, 1e-3), _LIKENESS)


def _free_number(used: Collection[int]) -> int:
    """The lowest number that no speaker has."""
    return next(number for number in range(len(used) + 1) if number not in used)
