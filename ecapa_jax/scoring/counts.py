"""Sorts trials by score once and counts their errors with any weights. Counts are integers, and ties are exact.

A resample of the trials is a weight for each trial: how often the trial was drawn. Counting a resample takes a
cumulative sum and no sorting.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64, Int64

from ecapa_jax.errors import ScoringError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """A detection cost function: c_miss p_target FRR + c_fa (1 - p_target) FAR.

    Attributes:
      p_target: prior probability of a target trial, between 0 and 1.
      c_miss: cost of a rejected target trial.
      c_fa: cost of an accepted non-target trial.

    Raises:
      ScoringError: a value is out of range.
    """

    p_target: float = 0.01
    c_miss: float = 1.0
    c_fa: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.p_target < 1:
            raise ScoringError(f"p_target is {self.p_target}; it must be between 0 and 1")
        if not (0 < self.c_miss < np.inf and 0 < self.c_fa < np.inf):
            raise ScoringError(f"c_miss is {self.c_miss} and c_fa is {self.c_fa}; both must be positive and finite")

    @property
    def miss(self) -> float:
        """Cost of rejecting everything."""
        return self.c_miss * self.p_target

    @property
    def false_alarm(self) -> float:
        """Cost of accepting everything."""
        return self.c_fa * (1 - self.p_target)

    @property
    def bayes_threshold(self) -> float:
        """The lowest log-likelihood ratio (natural) at which accepting costs less than rejecting."""
        return float(np.log(self.false_alarm) - np.log(self.miss))


@dataclasses.dataclass(frozen=True, eq=False)
class SortedTrials:
    """Trials in order of score.

    Attributes:
      thresholds: the distinct scores, ascending, then infinity: one for each operating point.
      targets: indices of the target trials, by ascending score.
      nontargets: indices of the non-target trials, by ascending score.
      targets_below: how many target trials have a score below each threshold.
      nontargets_below: how many non-target trials have a score below each threshold.
      corners: operating points that include one of least cost, for any costs and weights. These are both ends, and each
        score of a target trial that follows directly on the score of a non-target trial.
      scores: [trials], float64, in the order given.
    """

    thresholds: Float64[np.ndarray, " points"]
    targets: Int64[np.ndarray, " targets"]
    nontargets: Int64[np.ndarray, " nontargets"]
    targets_below: Int64[np.ndarray, " points"]
    nontargets_below: Int64[np.ndarray, " points"]
    corners: Int64[np.ndarray, " corners"]
    scores: Float64[np.ndarray, " trials"]

    @classmethod
    def of(cls, scores: npt.ArrayLike, labels: npt.ArrayLike) -> SortedTrials:
        """Sorts trials.

        Args:
          scores: [trials], finite; higher means more alike.
          labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

        Raises:
          ScoringError: scores and labels differ in number, a score is not finite, a label is neither 0 nor 1, or there
            is only one kind of trial.
        """
        values, marks = check_trials(scores, labels)
        order = np.argsort(values)
        ascending, marks = values[order], marks[order]
        # The position of the first trial of each distinct score.
        first = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))
        below = np.append(first, len(values))
        targets_below = np.concatenate([[0], np.cumsum(marks, dtype=np.int64)])[below]
        has_targets, has_nontargets = np.diff(targets_below) > 0, np.diff(below - targets_below) > 0
        inner = np.flatnonzero(has_targets[1:] & has_nontargets[:-1]) + 1
        return cls(
            thresholds=np.append(ascending[first], np.inf),
            targets=order[marks],
            nontargets=order[~marks],
            targets_below=targets_below,
            nontargets_below=below - targets_below,
            corners=np.concatenate([[0], inner, [len(first)]]),
            scores=values,
        )

    def count(self) -> Counts:
        """Counts every trial once."""
        return self.count_weighted(np.ones(len(self.targets), np.int64), np.ones(len(self.nontargets), np.int64))

    def count_weighted(
        self,
        targets: Int64[np.ndarray, " targets"],
        nontargets: Int64[np.ndarray, " nontargets"],
        out: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Counts:
        """Counts each trial as often as its weight says.

        Args:
          targets: weights, in the order of `self.targets`.
          nontargets: weights, in the order of `self.nontargets`.
          out: int64 arrays [targets + 1] and [nontargets + 1] that receive the counts; by default new arrays.
        """
        sums = out or (np.empty(len(targets) + 1, np.int64), np.empty(len(nontargets) + 1, np.int64))
        for weights, running in zip((targets, nontargets), sums, strict=True):
            running[0] = 0
            np.cumsum(weights, out=running[1:])
        return Counts(self, targets, nontargets, *sums)


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """Weighted trials, counted from the lowest score up.

    Attributes:
      trials: the trials that are counted.
      target_weights: weights in the order of `trials.targets`.
      nontarget_weights: weights in the order of `trials.nontargets`.
      targets_up_to: [targets + 1], total weight of the first k target trials.
      nontargets_up_to: [nontargets + 1], total weight of the first k non-target trials.
    """

    trials: SortedTrials
    target_weights: Int64[np.ndarray, " targets"]
    nontarget_weights: Int64[np.ndarray, " nontargets"]
    targets_up_to: Int64[np.ndarray, " targets_and_1"]
    nontargets_up_to: Int64[np.ndarray, " nontargets_and_1"]

    @property
    def n_targets(self) -> int:
        """Weight of all target trials."""
        return int(self.targets_up_to[-1])

    @property
    def n_nontargets(self) -> int:
        """Weight of all non-target trials."""
        return int(self.nontargets_up_to[-1])

    def rejected_targets(self, points: Any = slice(None)) -> Int64[np.ndarray, " points"]:
        """Weight of the target trials that operating points reject."""
        return self.targets_up_to[self.trials.targets_below[points]]

    def accepted_nontargets(self, points: Any = slice(None)) -> Int64[np.ndarray, " points"]:
        """Weight of the non-target trials that operating points accept."""
        return self.n_nontargets - self.nontargets_up_to[self.trials.nontargets_below[points]]

    def errors(self, point: int) -> tuple[int, int]:
        """Returns the accepted non-targets and rejected targets at one operating point."""
        accepted = self.n_nontargets - int(self.nontargets_up_to[self.trials.nontargets_below[point]])
        return accepted, int(self.targets_up_to[self.trials.targets_below[point]])

    def gap(self, point: int) -> int:
        """Returns FRR - FAR at an operating point, multiplied by both numbers of trials, which makes it an integer."""
        accepted, rejected = self.errors(point)
        return rejected * self.n_nontargets - accepted * self.n_targets

    def crossing(self) -> int:
        """Finds the first operating point at which FRR >= FAR; this is never point 0."""
        low, high = 0, len(self.trials.thresholds) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.gap(middle) < 0 else (low, middle)
        return high

    def eer(self) -> float:
        """Returns the equal error rate; see `metrics.eer`."""
        high = self.crossing()
        return crossing_rate(self.errors(high - 1), self.errors(high), self.n_targets, self.n_nontargets)

    def min_dcf(self, cost: Cost) -> float:
        """Returns the minimum normalised cost; see `metrics.min_dcf`."""
        return self.min_dcfs([cost])[0]

    def min_dcfs(self, costs: list[Cost]) -> list[float]:
        """Returns the minimum normalised cost for each of several cost functions."""
        points = self.trials.corners
        frr, far = self.rejected_targets(points) / self.n_targets, self.accepted_nontargets(points) / self.n_nontargets
        return [float((c.miss * frr + c.false_alarm * far).min()) / min(c.miss, c.false_alarm) for c in costs]

    def far_frr(self, threshold: float) -> tuple[float, float]:
        """Returns both error rates at any threshold."""
        accepted, rejected = self.errors(int(np.searchsorted(self.trials.thresholds, threshold)))
        return accepted / self.n_nontargets, rejected / self.n_targets

    def act_dcf(self, cost: Cost, threshold: float | None = None) -> float:
        """Returns the normalised cost at a threshold; see `metrics.act_dcf`."""
        far, frr = self.far_frr(cost.bayes_threshold if threshold is None else threshold)
        return (cost.miss * frr + cost.false_alarm * far) / min(cost.miss, cost.false_alarm)

    def point_at_far(self, far: float) -> int:
        """Finds the first operating point that accepts at most this share of the non-target trials."""
        low, high = -1, len(self.trials.thresholds) - 1
        allowed = far * self.n_nontargets
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.errors(middle)[0] <= allowed else (middle, high)
        return high

    def frr_at_far(self, far: float) -> float:
        """Returns the false rejection rate at the point of `point_at_far`."""
        return self.errors(self.point_at_far(far))[1] / self.n_targets


def crossing_rate(before: tuple[int, int], after: tuple[int, int], n_targets: int, n_nontargets: int) -> float:
    """Returns the error rate at which the line between two operating points crosses FAR = FRR.

    Args:
      before: accepted non-targets and rejected targets at a point with FRR < FAR.
      after: accepted non-targets and rejected targets at a point with FRR >= FAR.
      n_targets, n_nontargets: total numbers of trials.
    """
    below = before[0] * n_targets - before[1] * n_nontargets
    above = after[1] * n_nontargets - after[0] * n_targets
    return (before[0] * above + after[0] * below) / ((below + above) * n_nontargets)


def check_trials(
    scores: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[Float64[np.ndarray, " trials"], Bool[np.ndarray, " trials"]]:
    """Returns scores as float64 and labels as bool, or raises a ScoringError that says what to change."""
    values, marks = _read_numbers(scores, "scores"), _read_numbers(labels, "labels")
    if values.shape != marks.shape:
        raise ScoringError(f"there are {values.size} scores and {marks.size} labels; give one label for each score")
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ScoringError(f"score {at} is {values[at]}; all scores must be finite")
    targets = marks == 1
    if not (targets | (marks == 0)).all():
        at = int(np.flatnonzero(~targets & (marks != 0))[0])
        raise ScoringError(f"label {at} is {marks[at]:g}; a label is 1 for a target trial, 0 for a non-target trial")
    n_targets = int(np.count_nonzero(targets))
    if not 0 < n_targets < targets.size:
        counts = f"{n_targets} target and {targets.size - n_targets} non-target trials"
        raise ScoringError(f"there are {counts}; error rates need at least one of each")
    return values, targets


def _read_numbers(values: Any, name: str) -> Float64[np.ndarray, " trials"]:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ScoringError(
            f"{name} are not an array ({str(error).splitlines()[0]}); give one number for each trial"
        ) from error
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise ScoringError(
            f"{name} have shape {array.shape} and dtype {array.dtype}; give one number for each trial, [trials]"
        )
    return array.astype(np.float64, copy=False)
