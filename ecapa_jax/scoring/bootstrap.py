"""Intervals by bootstrap: speakers are drawn with replacement, and every figure is computed again from their trials.

Trials are not independent: one odd voice, or one noisy recording, is in many trials. So whole speakers are drawn, on
both sides of a trial. If speakers are unknown, files are drawn, which makes intervals too narrow. A trial of two
different units counts as often as the product of their draws. A trial within one unit counts as often as that unit was
drawn, because a second copy of a speaker is not a second recording of that speaker.

Reference: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife"; Snijders and Borgatti 1999, "Non-parametric
Standard Errors and Tests for Network Statistics" (drawing the ends of pairs).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64

from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring.counts import Counts, SortedTrials

Statistics = Callable[[Counts], Sequence[float]]

FEWEST_UNITS = 3
ATTEMPTS = 100
"""Number of consecutive draws without target or without non-target trials after which `resample` gives up."""


@dataclasses.dataclass(frozen=True, eq=False)
class Interval:
    """The confidence interval of a figure.

    Attributes:
      low, high: percentiles of the figure over the resamples.
    """

    low: float
    high: float


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """The difference of a figure between two systems on the same trials.

    Attributes:
      value: the figure of the second system minus that of the first.
      low, high: percentiles of the difference over resamples that are the same for both systems.
      p_value: twice the share of resamples on the other side of 0, at least 2 / (resamples + 1) and at most 1.
    """

    value: float
    low: float
    high: float
    p_value: float


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The units that are drawn: the speaker, or the file, on each side of each trial.

    Attributes:
      enrol: [trials], number of the unit on the enrolment side, from 0.
      test: [trials], number of the unit on the test side.
      n: number of units.
    """

    enrol: Int64[np.ndarray, " trials"]
    test: Int64[np.ndarray, " trials"]
    n: int

    @classmethod
    def of(cls, enrol: npt.ArrayLike, test: npt.ArrayLike) -> Units:
        """Makes units from labels, which are names or numbers, one for each trial and side."""
        first, second = np.asarray(enrol), np.asarray(test)
        names, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
        numbers = numbers.astype(np.int64)
        return cls(numbers[: len(first)], numbers[len(first) :], len(names))


class _Resampler:
    """Weighs the trials of one system. It reuses its arrays for every draw, because allocation would dominate."""

    def __init__(self, trials: SortedTrials, units: Units):
        # The other side of a trial within a unit is an additional unit, which is always drawn once.
        sides = np.stack([units.enrol, np.where(units.enrol == units.test, units.n, units.test)])
        self._trials = trials
        self._sides = [sides[:, trials.targets], sides[:, trials.nontargets]]
        self._within = [bool((side[1] == units.n).all()) for side in self._sides]  # as target trials by speaker are
        self._weights = [np.empty_like(side) for side in self._sides]
        targets, nontargets = (np.empty(side.shape[1] + 1, np.int64) for side in self._sides)
        self._sums = targets, nontargets

    def count(self, drawn: Int64[np.ndarray, " units_and_1"]) -> Counts:
        """Counts the trials of a draw; the result is valid until the next call."""
        for side, weights, within in zip(self._sides, self._weights, self._within, strict=True):
            np.take(drawn, side[0], out=weights[0], mode="clip")  # "raise" would copy `out`
            if not within:
                np.take(drawn, side[1], out=weights[1], mode="clip")
                weights[0] *= weights[1]
        return self._trials.count_weighted(self._weights[0][0], self._weights[1][0], self._sums)


def resample(
    systems: Sequence[SortedTrials], units: Units, statistics: Statistics, *, n: int = 1000, seed: int = 0
) -> Float64[np.ndarray, "n systems statistics"]:
    """Computes figures of resampled trials.

    Args:
      systems: the scores of one or more systems on the same trials.
      units: the units of these trials.
      statistics: function that computes figures from a count, always the same number of figures.
      n: number of resamples.
      seed: seed of the draws. The same seed draws the same units for any systems.

    Raises:
      ScoringError: there are too few units, or too many draws contain only one kind of trial.
    """
    n_trials = len(systems[0].scores)
    if units.enrol.shape != (n_trials,) or units.test.shape != (n_trials,):
        raise ScoringError(
            f"there are {n_trials} trials and {len(units.enrol)} pairs of speakers; give one pair for each trial"
        )
    if units.n < FEWEST_UNITS:
        raise ScoringError(
            f"the trials have {units.n} different speakers or files; an interval needs at least {FEWEST_UNITS}"
        )
    resamplers = [_Resampler(trials, units) for trials in systems]
    rng = np.random.default_rng(seed)
    rows: list[list[Sequence[float]]] = []
    misses = 0
    while len(rows) < n:
        drawn = np.bincount(rng.integers(units.n, size=units.n), minlength=units.n + 1)
        drawn[-1] = 1
        counts = [resampler.count(drawn) for resampler in resamplers]
        if counts[0].n_targets and counts[0].n_nontargets:
            rows.append([statistics(count) for count in counts])
            misses = 0
        elif (misses := misses + 1) == ATTEMPTS:
            raise ScoringError("there are too few speakers for an interval: most resamples have only one kind of trial")
    return np.array(rows, np.float64)


def intervals(samples: Float64[np.ndarray, "n statistics"], confidence: float = 0.95) -> list[Interval]:
    """Returns the central percentiles of each figure.

    Raises:
      ScoringError: the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ScoringError(f"the confidence is {confidence}; it must be between 0 and 1, such as 0.95")
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def differences(
    systems: Sequence[SortedTrials],
    units: Units,
    statistics: Statistics,
    *,
    n: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Difference]:
    """Returns the difference of each figure, second system minus first, on the same trials and the same draws.

    Args:
      systems: two systems.
      units, statistics, n, seed: as for `resample`.
      confidence: confidence level of the interval.

    Raises:
      ScoringError: as `resample`, or the two systems have different trials.
    """
    first, second = systems
    if len(first.scores) != len(second.scores) or not np.array_equal(np.sort(first.targets), np.sort(second.targets)):
        raise ScoringError("the two systems have different trials: compare scores of the same list in the same order")
    samples = resample(systems, units, statistics, n=n, seed=seed)
    gaps = samples[:, 1] - samples[:, 0]
    values = np.subtract(statistics(second.count()), statistics(first.count()))
    sides = np.minimum((gaps <= 0).sum(0), (gaps >= 0).sum(0))
    return [
        Difference(float(value), spread.low, spread.high, float(min(1.0, 2 * (side + 1) / (n + 1))))
        for value, spread, side in zip(values, intervals(gaps, confidence), sides, strict=True)
    ]
