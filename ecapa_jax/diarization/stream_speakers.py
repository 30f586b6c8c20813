"""Assigns speakers to the windows of a stream; speakers keep their numbers when the windows are clustered again."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.optimize import linear_sum_assignment

from ecapa_jax.diarization.clustering import Labels, SpeakerCount, cluster, unit
from ecapa_jax.diarization.settings import StreamSettings

_LIKENESS = 0.6  # assumed cosine of neighbouring windows of one speaker, until some are known
_NEIGHBOURS = 100  # number of cosines of neighbouring windows to keep


class SpeakerTracker:
    """Assigns a speaker, a number from 0, to each window of a stream.

    A new window is assigned to the speaker with the nearest centroid, or to a new speaker. From time to time, `cluster`
    clusters all open windows again. Closed windows keep their speaker; of them, the tracker stores only a sum and a
    count for each speaker.

    Attributes:
      spans: first 10 ms frame, and frame after the last, of each open window.
    """

    def __init__(self, most: int, settings: StreamSettings) -> None:
        """Begins a stream.

        Args:
          most: largest number of speakers.
          settings: thresholds.
        """
        self.spans: list[tuple[int, int]] = []
        self._most, self._settings = most, settings
        self._so_far = dataclasses.replace(settings, fewest_windows=settings.fewest_so_far)
        self._rows: list[np.ndarray] = []
        self._numbers: list[int] = []  # the speaker of each open window
        self._closed: dict[int, tuple[np.ndarray, int]] = {}  # sum and count of the closed windows of each speaker
        self._totals: dict[int, np.ndarray] = {}  # sum of the open and closed windows of each speaker
        self._cosines: collections.deque[float] = collections.deque([_LIKENESS], _NEIGHBOURS)
        self._n_new = 0  # number of windows since the last clustering

    def add(self, span: tuple[int, int], row: Float32[np.ndarray, " embedding"]) -> bool:
        """Takes the next window, and returns whether the open windows have been clustered again.

        Args:
          span: first frame, and frame after the last.
          row: embedding of length 1.
        """
        number = self._find_speaker(row)
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
        """Returns whether the number of open windows has reached its limit."""
        return len(self.spans) >= self._settings.block_windows

    def finish(self) -> bool:
        """Clusters the open windows for the last time, and returns whether there are any."""
        return self._regroup(self._settings)

    def _regroup(self, settings: StreamSettings) -> bool:
        """Clusters the open windows, and returns whether there are any."""
        if not self._rows:
            return False
        rows = np.stack(self._rows)
        clusters = cluster(rows, np.array(self.spans), SpeakerCount(most=self._most), settings)
        self._numbers = self._number_clusters(clusters, rows)[clusters].tolist()
        self._totals = {number: total for number, (total, _) in self._closed.items()}
        for number, row in zip(self._numbers, rows, strict=True):
            self._totals[number] = self._totals.get(number, 0) + row
        self._n_new = 0
        return True

    def close(self, n_windows: int) -> None:
        """Closes the oldest windows, whose speakers are final from now on."""
        for number, row in zip(self._numbers[:n_windows], self._rows[:n_windows], strict=True):
            total, count = self._closed.get(number, (np.zeros_like(row), 0))
            self._closed[number] = total + row, count + 1
        for kept in (self.spans, self._rows, self._numbers):
            del kept[:n_windows]

    def cosines(
        self, frame: int
    ) -> tuple[Int64[np.ndarray, " speakers"], Int64[np.ndarray, "windows 2"], Float32[np.ndarray, "windows speakers"]]:
        """Compares the open windows that end after a frame with the centroids of all speakers.

        Returns:
          The numbers of the speakers, the spans of the windows, and the cosines between windows and centroids.
        """
        first = len(self.spans)
        while first and self.spans[first - 1][1] > frame:
            first -= 1
        numbers = sorted(self._totals)
        centroids = unit(np.stack([self._totals[number] for number in numbers]))
        return np.array(numbers), np.array(self.spans[first:]), np.stack(self._rows[first:]) @ centroids.T

    def _find_speaker(self, row: Float32[np.ndarray, " embedding"]) -> int:
        """Returns the speaker with the nearest centroid, or the lowest free number if none is near enough."""
        if not self._totals:
            return 0
        cosines = {number: float(unit(total) @ row) for number, total in self._totals.items()}
        nearest = max(cosines, key=lambda number: cosines[number])
        least = self._settings.new_speaker * max(float(np.median(self._cosines)), 0.1)
        if cosines[nearest] >= least or len(cosines) >= self._most:
            return nearest
        return _free_number(cosines)

    def _number_clusters(
        self, clusters: Labels, rows: Float32[np.ndarray, "windows embedding"]
    ) -> Int64[np.ndarray, " clusters"]:
        """Gives each cluster the number of the speaker with whom it shares most windows, or whom it is most like."""
        n_clusters = int(clusters.max()) + 1
        known = sorted({*self._numbers, *self._closed})
        shared = np.zeros((n_clusters, len(known)))
        np.add.at(shared, (clusters, np.searchsorted(known, self._numbers)), 1)
        likeness = self._likeness(clusters, rows, known)
        # Any likeness counts less than one shared window.
        scores = shared + np.where(likeness >= self._settings.same_speaker, np.clip(likeness, 0, 2) / 4, 0)
        result = np.full(n_clusters, -1, np.int64)
        for index, column in zip(*linear_sum_assignment(-scores), strict=True):
            if scores[index, column] > 0:
                result[index] = known[column]
        for index in np.flatnonzero(result < 0):
            used = {*self._closed, *result[result >= 0].tolist()}
            result[index] = _free_number(used) if len(used) < self._most else known[int(likeness[index].argmax())]
        return result

    def _likeness(
        self, clusters: Labels, rows: Float32[np.ndarray, "windows embedding"], known: list[int]
    ) -> Float[np.ndarray, "clusters speakers"]:
        """Returns the likeness of clusters to the closed windows of each speaker, on the scale of `same_speaker`.

        The likeness to a speaker without closed windows is -1.
        """
        totals = np.stack([rows[clusters == index].sum(axis=0) for index in range(clusters.max() + 1)])
        within = _mean_cosine(totals, np.bincount(clusters))
        result = np.full((len(totals), len(known)), -1.0)
        for column, number in enumerate(known):
            if number in self._closed:
                total, count = self._closed[number]
                scale = np.sqrt(within * _mean_cosine(total[None], np.array([count])))
                result[:, column] = totals @ total / (np.bincount(clusters) * count) / scale
        return result


def _mean_cosine(
    totals: Float[np.ndarray, "speakers embedding"], counts: Int64[np.ndarray, " speakers"]
) -> Float[np.ndarray, " speakers"]:
    """Returns the mean cosine between the windows of each speaker, computed from their sum."""
    pairs = counts * (counts - 1)
    means = (np.sum(totals * totals, axis=1) - counts) / np.maximum(pairs, 1)
    return np.where(pairs > 0, np.maximum(means, 1e-3), _LIKENESS)


def _free_number(used: Collection[int]) -> int:
    """Returns the lowest number that no speaker has."""
    return next(number for number in range(len(used) + 1) if number not in used)
