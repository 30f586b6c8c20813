"""Error rates and costs of verification scores: FAR, FRR, EER, detection costs, DET points. NumPy, float64, exact ties.

A trial is accepted when its score is at least the threshold. A target trial has two recordings of one speaker. All
rates are fractions of 1. Trials with equal scores are always accepted or rejected together, so that no result depends
on their order. Each function sorts the trials; `counts.SortedTrials` sorts once for many of them.

Reference: NIST 2016 Speaker Recognition Evaluation Plan, section 3 (detection cost), and Martin et al. 1997, "The DET
Curve in Assessment of Detection Task Performance" (operating points).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring.counts import Cost, SortedTrials, check_trials
from ecapa_jax.scoring.llr import hull_eer, pool


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
    """Counts both kinds of error at every threshold that changes a decision.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

    Returns:
      The operating points, one more than there are distinct scores.

    Raises:
      ScoringError: scores and labels differ in number, a score is not finite, a label is neither 0 nor 1, or there is
        only one kind of trial.
    """
    counts = SortedTrials.of(scores, labels).count()
    return ErrorRates(
        thresholds=counts.trials.thresholds,
        far=counts.accepted_nontargets() / counts.n_nontargets,
        frr=counts.rejected_targets() / counts.n_targets,
    )


def eer(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Returns the equal error rate, where straight lines between neighbouring operating points cross FAR = FRR.

    The result is exact: counts are compared as integers and divided once. speakerlab's `compute_eer` interpolates in
    the same way, but takes trials with equal scores one by one; without ties the two agree. speechbrain's `EER` is the
    mean of FAR and FRR at the operating point where they are closest; without ties it differs by at most half of the
    larger of 1/targets and 1/non-targets.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

    Returns:
      The rate as a fraction of 1.

    Raises:
      ScoringError: as in `error_rates`.
    """
    return SortedTrials.of(scores, labels).count().eer()


def rocch_eer(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Returns the equal error rate of the convex hull of the ROC: the error of the best decisions at the worst prior.

    It is never above `eer`, and does not jump on short lists as `eer` does. Calibration by pooled adjacent violators
    reaches the hull, and so does a random choice between two thresholds.

    Reference: Brummer and de Villiers 2011, "The BOSARIS Toolkit User Guide", section on the ROCCH.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

    Returns:
      The rate as a fraction of 1.

    Raises:
      ScoringError: as in `error_rates`.
    """
    return hull_eer(pool(SortedTrials.of(scores, labels)))


def eer_threshold(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Returns a threshold at which FAR and FRR of these trials are closest.

    All thresholds between two neighbouring scores make the same decisions. This one lies half-way, which leaves other
    trials the same room on both sides. If two operating points are equally close, the lower one is taken.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

    Returns:
      The threshold, on the scale of the scores; accept when score >= threshold.

    Raises:
      ScoringError: as in `error_rates`.
    """
    trials = SortedTrials.of(scores, labels)
    counts = trials.count()
    high = counts.crossing()
    best = high - 1 if -counts.gap(high - 1) <= counts.gap(high) else high
    upper = float(trials.thresholds[best])
    if best == 0:  # every trial is accepted, and there is no score below
        return upper
    lower = float(trials.thresholds[best - 1])
    middle = lower / 2 + upper / 2  # not (lower + upper) / 2, which can overflow
    return middle if lower < middle <= upper else upper


def min_dcf(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Returns the minimum of the normalised detection cost over all thresholds.

    The cost of a threshold is c_miss p_target FRR + c_fa (1 - p_target) FAR. It is divided by the cost of the better
    system that always gives the same answer, min(c_miss p_target, c_fa (1 - p_target)), so that 1 is the worst. This
    is NIST's C_norm and speakerlab's `compute_c_norm` (which leaves out the threshold that accepts every trial, and
    takes trials with equal scores one by one). speechbrain's `minDCF` is not normalised.

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
    cost = Cost(p_target=p_target, c_miss=c_miss, c_fa=c_fa)
    return SortedTrials.of(scores, labels).count().min_dcf(cost)


def act_dcf(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    threshold: float | None = None,
    *,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
) -> float:
    """Returns the normalised detection cost at one threshold; `min_dcf` is its minimum.

    Args:
      scores: [trials], finite; log-likelihood ratios (natural) if no threshold is given.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.
      threshold: lowest score that is accepted; None is the Bayes threshold
        log(c_fa (1 - p_target) / (c_miss p_target)), which is optimal for log-likelihood ratios.
      p_target, c_miss, c_fa: as for `min_dcf`.

    Returns:
      The cost; 1 is the cost of always giving the same answer, and a bad threshold costs more than 1.

    Raises:
      ScoringError: as in `min_dcf`, or the threshold is NaN.
    """
    cost = Cost(p_target=p_target, c_miss=c_miss, c_fa=c_fa)
    _refuse_nan(threshold)
    return SortedTrials.of(scores, labels).count().act_dcf(cost, threshold)


def frr_at_far(scores: npt.ArrayLike, labels: npt.ArrayLike, far: float) -> float:
    """Returns the false rejection rate at the lowest threshold that keeps the false acceptance rate at most at `far`.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.
      far: from 0 to 1. Below 1/non-targets, no non-target trial may be accepted.

    Returns:
      FRR as a fraction of 1, without interpolation, so that there is a threshold with both rates.

    Raises:
      ScoringError: as in `error_rates`, or `far` is out of range.
    """
    if not 0 <= far <= 1:
        raise ScoringError(f"the false acceptance rate is {far}; it must be from 0 to 1")
    return SortedTrials.of(scores, labels).count().frr_at_far(far)


def det_points(scores: npt.ArrayLike, labels: npt.ArrayLike) -> ErrorRates:
    """Returns the corners of the detection error trade-off, leaving out operating points on a line between others.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

    Returns:
      Some of the points of `error_rates`, among them the first and the last.

    Raises:
      ScoringError: as in `error_rates`.
    """
    rates = error_rates(scores, labels)
    far, frr = np.diff(rates.far) != 0, np.diff(rates.frr) != 0
    straight = ((far[:-1] == far[1:]) & (frr[:-1] == frr[1:])) & (far[:-1] != frr[:-1])
    keep = np.concatenate([[True], ~straight, [True]])
    return ErrorRates(rates.thresholds[keep], rates.far[keep], rates.frr[keep])


def far_frr(scores: npt.ArrayLike, labels: npt.ArrayLike, threshold: float) -> tuple[float, float]:
    """Returns the false acceptance rate and the false rejection rate at one threshold.

    Args:
      scores: [trials], finite; higher means more alike.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.
      threshold: lowest score that is accepted; may be infinite.

    Returns:
      FAR and FRR, fractions of 1.

    Raises:
      ScoringError: as in `error_rates`, or the threshold is NaN.
    """
    _refuse_nan(threshold)
    values, targets = check_trials(scores, labels)
    accepted = values >= threshold
    return float(accepted[~targets].mean()), float((~accepted[targets]).mean())


def _refuse_nan(threshold: float | None) -> None:
    if threshold is not None and np.isnan(threshold):
        raise ScoringError("threshold is NaN; give a number")
