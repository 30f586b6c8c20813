"""Scores as log-likelihood ratios: Cllr, its minimum, and pooled adjacent violators. NumPy, float64.

Reference: Brummer and du Preez 2006, "Application-independent evaluation of speaker detection" (Cllr, and its minimum
by pooled adjacent violators); Fawcett and Niculescu-Mizil 2007, "PAV and the ROC convex hull".
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64
from scipy.optimize import isotonic_regression

from ecapa_jax.scoring.counts import SortedTrials, crossing_rate


@dataclasses.dataclass(frozen=True, eq=False)
class PooledRuns:
    """Runs of scores: the share of targets rises from run to run, and within a run the scores carry no information.

    Attributes:
      lowest: lowest score of each run, ascending.
      targets: target trials in each run.
      nontargets: non-target trials in each run.
    """

    lowest: Float64[np.ndarray, " runs"]
    targets: Int64[np.ndarray, " runs"]
    nontargets: Int64[np.ndarray, " runs"]

    @property
    def llr(self) -> Float64[np.ndarray, " runs"]:
        """Log-likelihood ratio (natural) of each run; -inf or inf for a run with only one kind of trial."""
        with np.errstate(divide="ignore"):
            prior = np.log(self.targets.sum()) - np.log(self.nontargets.sum())
            return np.log(self.targets) - np.log(self.nontargets) - prior


def pool(trials: SortedTrials) -> PooledRuns:
    """Pools adjacent violators; trials with equal scores are one from the start."""
    targets, nontargets = np.diff(trials.targets_below), np.diff(trials.nontargets_below)
    weights = targets + nontargets
    fit = isotonic_regression(targets / weights, weights=weights.astype(np.float64))
    first = fit.blocks[:-1]
    return PooledRuns(trials.thresholds[first], np.add.reduceat(targets, first), np.add.reduceat(nontargets, first))


def hull_eer(pooled: PooledRuns) -> float:
    """Returns the error rate at which the convex hull of the ROC crosses FAR = FRR; its corners lie between runs."""
    rejected = np.concatenate([[0], np.cumsum(pooled.targets)])
    accepted = int(pooled.nontargets.sum()) - np.concatenate([[0], np.cumsum(pooled.nontargets)])
    n_targets, n_nontargets = int(rejected[-1]), int(accepted[0])
    high = int(np.searchsorted(rejected * n_nontargets - accepted * n_targets, 0))
    before, after = ((int(accepted[i]), int(rejected[i])) for i in (high - 1, high))
    return crossing_rate(before, after, n_targets, n_nontargets)


def cllr_losses(scores: Float64[np.ndarray, " n"], target: bool) -> Float64[np.ndarray, " n"]:
    """Returns the cost of each log-likelihood ratio in bits, for trials of one kind."""
    return np.logaddexp(0, -scores if target else scores) / np.log(2)


def cllr(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Returns the cost of log-likelihood ratios over all priors: it measures discrimination and calibration together.

    Args:
      scores: [trials], finite log-likelihood ratios (natural).
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

    Returns:
      The cost in bits: 0 is perfect, 1 is the cost of scores that are all 0, and misleading scores cost more than 1.

    Raises:
      ScoringError: as in `metrics.error_rates`.
    """
    trials = SortedTrials.of(scores, labels)
    targets = cllr_losses(trials.scores[trials.targets], True).mean()
    return float(targets + cllr_losses(trials.scores[trials.nontargets], False).mean()) / 2


def min_cllr(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Returns the lowest Cllr that any rising function of the scores reaches on these trials.

    Args:
      scores: [trials], finite; higher means more alike, on any scale.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.

    Returns:
      The cost in bits, from 0 to 1. `cllr` minus this number is the loss by bad calibration.

    Raises:
      ScoringError: as in `metrics.error_rates`.
    """
    return pooled_cllr(pool(SortedTrials.of(scores, labels)))


def pooled_cllr(pooled: PooledRuns) -> float:
    """Returns the Cllr of the log-likelihood ratios of the runs."""
    # A run with an infinite ratio has trials of one kind only, for which this ratio costs nothing.
    with np.errstate(invalid="ignore"):
        targets = np.where(pooled.targets > 0, pooled.targets * cllr_losses(pooled.llr, True), 0.0)
        nontargets = np.where(pooled.nontargets > 0, pooled.nontargets * cllr_losses(pooled.llr, False), 0.0)
    return float(targets.sum() / pooled.targets.sum() + nontargets.sum() / pooled.nontargets.sum()) / 2
