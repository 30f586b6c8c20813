"""Error rates of verification scores: FAR, FRR, EER and minimum detection cost. NumPy, float64, ties exact.

A trial is accepted when its score is at least the threshold. A target trial has two recordings of one speaker. All
rates are fractions of 1. Trials with equal scores are always accepted or rejected together, so that no result depends
on their order.

Reference: NIST 2016 Speaker Recognition Evaluation Plan, section 3 (detection cost), and Martin et al. 1997, "The DET
Curve in Assessment of Detection Task Performance" (operating points).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64, Int64

from ecapa_jax.errors import ScoringError


@dataclasses.dataclass(frozen=True, eq=False)
class ErrorRates:
    """All operating points of a set of trials, from accepting every trial to rejecting every trial.

    Attributes:
      thresholds: the distinct scores, ascending, then infinity.
      far: false acceptance rate at each threshold, falling from 1 to 0.
      frr: false rejection rate at each threshold, rising from 0 to 1.
    """

    thresholds: Float64[np.ndarray, " points"]
    far: Float64[np.ndarray, " points"]
    frr: Float64[np.ndarray, " points"]


def error_rates(scores: npt.ArrayLike, labels: npt.ArrayLike) -> ErrorRates:
    """Counts both kinds of error at every threshold that makes a difference.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

    Returns:
      The operating points, one more than there are distinct scores.

    Raises:
      ScoringError: not one label a score, a score that is not finite, another label, or a kind of trial is missing.
    """
    points = _count(*_checked(scores, labels))
    return ErrorRates(
        thresholds=points.thresholds,
        far=points.accepted_nontargets / points.n_nontargets,
        frr=points.rejected_targets / points.n_targets,
    )


def eer(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Equal error rate: where the straight lines between neighbouring operating points cross FAR = FRR.

    It is exact: counts are compared as integers and divided once. speakerlab's `compute_eer` interpolates in the same
    way, but takes trials with equal scores one by one in the order in which they are sorted; without ties the two
    agree. speechbrain's `EER` is the mean of FAR and FRR at the operating point where they are closest, and differs
    by at most half of the larger of 1/targets and 1/non-targets when there are no ties.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

    Returns:
      The rate as a fraction of 1.

    Raises:
      ScoringError: as in `error_rates`.
    """
    points = _count(*_checked(scores, labels))
    gap = points.gap()
    # The gap rises from -1 to 1 (times both counts), so that the first point without a negative one has a neighbour.
    high = int(np.searchsorted(gap, 0))
    below, above = -int(gap[high - 1]), int(gap[high])
    accepted, accepted_above = (int(points.accepted_nontargets[i]) for i in (high - 1, high))
    return (accepted * above + accepted_above * below) / ((below + above) * points.n_nontargets)


def eer_threshold(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """A threshold at which FAR and FRR of these trials are as close as any threshold brings them.

    Every threshold between two neighbouring scores makes the same decisions; this one is half-way, which leaves other
    trials the same room on both sides. At two equally close operating points it is the lower one.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

    Returns:
      The threshold, on the scale of the scores; accept when score >= threshold.

    Raises:
      ScoringError: as in `error_rates`.
    """
    points = _count(*_checked(scores, labels))
    best = int(np.abs(points.gap()).argmin())
    upper = float(points.thresholds[best])
    if best == 0:  # every trial is accepted: no score below to keep away from
        return upper
    lower = float(points.thresholds[best - 1])
    middle = lower / 2 + upper / 2  # not (lower + upper) / 2, which can overflow
    return middle if lower < middle <= upper else upper


def min_dcf(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Minimum of the normalised detection cost over all thresholds.

    The cost of a threshold is c_miss p_target FRR + c_fa (1 - p_target) FAR; it is divided by the cost of the better
    of the two systems that don't listen, min(c_miss p_target, c_fa (1 - p_target)), so that 1 is the worst. This is
    NIST's C_norm and speakerlab's `compute_c_norm` (which leaves out the threshold that accepts every trial, and takes
    equal scores in the order in which they are sorted). speechbrain's `minDCF` is not normalised.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.
      p_target: prior probability of a target trial, between 0 and 1.
      c_miss: cost of a rejected target trial.
      c_fa: cost of an accepted non-target trial.

    Returns:
      The cost, in [0, 1].

    Raises:
      ScoringError: as in `error_rates`, or p_target or a cost out of range.
    """
    if not 0 < p_target < 1:
        raise ScoringError(f"p_target is {p_target}; it must be between 0 and 1")
    if not (0 < c_miss < np.inf and 0 < c_fa < np.inf):
        raise ScoringError(f"c_miss is {c_miss} and c_fa is {c_fa}; both must be positive and finite")
    rates = error_rates(scores, labels)
    miss, false_alarm = c_miss * p_target, c_fa * (1 - p_target)
    return float((miss * rates.frr + false_alarm * rates.far).min() / min(miss, false_alarm))


def far_frr(scores: npt.ArrayLike, labels: npt.ArrayLike, threshold: float) -> tuple[float, float]:
    """False acceptance and false rejection rate at one threshold.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.
      threshold: a trial is accepted when its score is at least this; may be infinite.

    Returns:
      FAR and FRR, fractions of 1.

    Raises:
      ScoringError: as in `error_rates`, or the threshold is NaN.
    """
    if np.isnan(threshold):
        raise ScoringError("threshold is NaN; give a number")
    values, targets = _checked(scores, labels)
    accepted = values >= threshold
    return float(accepted[~targets].mean()), float((~accepted[targets]).mean())


@dataclasses.dataclass(frozen=True, eq=False)
class _Points:
    """Operating points as counts, in the order of `ErrorRates`."""

    thresholds: Float64[np.ndarray, " points"]
    accepted_nontargets: Int64[np.ndarray, " points"]
    rejected_targets: Int64[np.ndarray, " points"]
    n_targets: int
    n_nontargets: int

    def gap(self) -> Int64[np.ndarray, " points"]:
        """FRR - FAR, times the number of targets and of non-targets."""
        return self.rejected_targets * self.n_nontargets - self.accepted_nontargets * self.n_targets


def _count(scores: Float64[np.ndarray, " trials"], targets: Bool[np.ndarray, " trials"]) -> _Points:
    order = np.argsort(scores)
    ascending = scores[order]
    first = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))  # of each distinct score
    rejected = np.append(first, len(scores))  # trials below each threshold
    targets_below = np.concatenate([[0], np.cumsum(targets[order], dtype=np.int64)])
    n_targets = int(targets_below[-1])
    n_nontargets = len(scores) - n_targets
    return _Points(
        thresholds=np.append(ascending[first], np.inf),
        accepted_nontargets=n_nontargets - (rejected - targets_below[rejected]),
        rejected_targets=targets_below[rejected],
        n_targets=n_targets,
        n_nontargets=n_nontargets,
    )


def _checked(
    scores: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[Float64[np.ndarray, " trials"], Bool[np.ndarray, " trials"]]:
    """Scores as float64 and labels as bool, or a ScoringError that says what to change."""
    values, marks = _numbers(scores, "scores"), _numbers(labels, "labels")
    if values.shape != marks.shape:
        raise ScoringError(f"there are {values.size} scores and {marks.size} labels; give one label a score")
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


def _numbers(values: Any, name: str) -> Float64[np.ndarray, " trials"]:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ScoringError(
            f"{name} are not an array ({str(error).splitlines()[0]}); give one number a trial"
        ) from error
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise ScoringError(
            f"{name} have shape {array.shape} and dtype {array.dtype}; give one number a trial, [trials]"
        )
    return array.astype(np.float64, copy=False)
