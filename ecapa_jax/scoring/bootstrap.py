"""Intervals by bootstrap: speakers are drawn with replacement, and every figure is taken again of their trials.

Trials are not independent: one odd voice, or one noisy recording, is in many of them. So whole speakers are drawn (both
sides of a trial), or files where speakers are unknown, which gives intervals that are too narrow. A trial of two
different units counts as often as the product of their draws; one within a unit as often as that unit was drawn,
because two copies of a speaker are no second recording of him.

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
"""Draws in a row without a target or without a non-target trial, before giving up."""


@dataclasses.dataclass(frozen=True, eq=False)
class Interval:
    """A figure's spread over the resamples.

    Attributes:
      low, high: central percentiles.
    """

    low: float
    high: float


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """How much lower or higher a second system's figure is on the same trials.

    Attributes:
      value: second less first.
      low, high: central percentiles of it over resamples drawn alike for both.
      p_value: twice the share of resamples on the other side of 0, at least 2 / (resamples + 1); 1 at most.
    """

    value: float
    low: float
    high: float
    p_value: float


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """What is drawn: the speaker, or the file, on each side of each trial.

    Attributes:
      enrol: [trials] number of the unit on the enrolment side, from 0.
      test: [trials] the other side.
      n: how many units there are.
    """

    enrol: Int64[np.ndarray, " trials"]
    test: Int64[np.ndarray, " trials"]
    n: int

    @classmethod
    def of(cls, enrol: npt.ArrayLike, test: npt.ArrayLike) -> Units:
        """From any labels: names or numbers, one a trial and side."""
        first, second = np.asarray(enrol), np.asarray(test)
        names, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
        numbers = numbers.astype(np.int64)
        return cls(numbers[: len(first)], numbers[len(first) :], len(names))


class _Resampler:
    """Weighs one system's trials; its arrays are used again for every draw, which is most of the speed."""

    def __init__(self, trials: SortedTrials, units: Units):
        # A trial within a unit has its other side at one that is always drawn once.
        sides = np.stack([units.enrol, np.where(units.enrol == units.test, units.n, units.test)])
        self._trials = trials
        self._sides = [sides[:, trials.targets], sides[:, trials.nontargets]]
        self._within = [bool((side[1] == units.n).all()) for side in self._sides]  # as target trials by speaker are
        self._weights = [np.empty_like(side) for side in self._sides]
        targets, nontargets = (np.empty(side.shape[1] + 1, np.int64) for side in self._sides)
        self._sums = targets, nontargets

    def count(self, drawn: Int64[np.ndarray, " units_and_1"]) -> Counts:
        """The trials of a draw; good until the next."""
        for side, weights, within in zip(self._sides, self._weights, self._within, strict=True):
            np.take(drawn, side[0], out=weights[0], mode="clip")  # "raise" would copy `out`
            if not within:
                np.take(drawn, side[1], out=weights[1], mode="clip")
                weights[0] *= weights[1]
        return self._trials.weighted(self._weights[0][0], self._weights[1][0], self._sums)


def resample(
    systems: Sequence[SortedTrials], units: Units, statistics: Statistics, *, n: int = 1000, seed: int = 0
) -> Float64[np.ndarray, "n systems statistics"]:
    """Figures of resampled trials.

    Args:
      systems: one or more systems' scores of the same trials.
      units: of those trials.
      statistics: figures of a count, the same number each time.
      n: resamples.
      seed: of the draws; one seed draws the same units whatever the systems.

    Raises:
      ScoringError: too few units, or draws keep leaving out a kind of trial.
    """
    n_trials = len(systems[0].scores)
    if units.enrol.shape != (n_trials,) or units.test.shape != (n_trials,):
        raise ScoringError(f"there are {n_trials} trials and {len(units.enrol)} pairs of speakers; give one each")
    if units.n < FEWEST_UNITS:
        raise ScoringError(f"all trials are of {units.n} speakers or files: too few to draw an interval from")
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
            raise ScoringError("resampled speakers have no trials of one kind: there are too few for an interval")
    return np.array(rows, np.float64)


def intervals(samples: Float64[np.ndarray, "n statistics"], confidence: float = 0.95) -> list[Interval]:
    """Central percentiles of each figure.

    Raises:
      ScoringError: the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ScoringError(f"the confidence is {confidence}; it must be between 0 and 1, as 0.95")
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
    """Second system less first, on the same trials and the same draws.

    Args:
      systems: two.
      units, statistics, n, seed: as for `resample`.
      confidence: of the interval.

    Raises:
      ScoringError: as `resample`; or the systems were scored on other trials.
    """
    first, second = systems
    if len(first.scores) != len(second.scores) or not np.array_equal(np.sort(first.targets), np.sort(second.targets)):
        raise ScoringError("the two systems have other trials: compare scores of one list, in one order")
    samples = resample(systems, units, statistics, n=n, seed=seed)
    gaps = samples[:, 1] - samples[:, 0]
    values = np.subtract(statistics(second.count()), statistics(first.count()))
    sides = np.minimum((gaps <= 0).sum(0), (gaps >= 0).sum(0))
    return [
        Difference(float(value), spread.low, spread.high, float(min(1.0, 2 * (side + 1) / (n + 1))))
        for value, spread, side in zip(values, intervals(gaps, confidence), sides, strict=True)
    ]
