"""Chooses a threshold from trials, and computes its error rates."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring.counts import Cost
from ecapa_jax.scoring.llr import cllr, min_cllr
from ecapa_jax.scoring.metrics import eer, eer_threshold, error_rates, far_frr, min_dcf


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThresholdRule:
    """The rule by which a threshold is chosen; set exactly one field.

    Attributes:
      eer: choose the threshold at which both error rates are closest.
      far: choose the lowest threshold with at most this false acceptance rate.
      cost: choose the threshold with the lowest detection cost.

    Raises:
      ScoringError: not exactly one field is set, or the rate is out of range.
    """

    eer: bool = False
    far: float | None = None
    cost: Cost | None = None

    def __post_init__(self) -> None:
        if self.eer + (self.far is not None) + (self.cost is not None) != 1:
            raise ScoringError("choose the threshold by exactly one of: equal error rate, a target FAR, a cost")
        if self.far is not None and not 0 <= self.far < 1:
            raise ScoringError(f"the target FAR is {self.far}; it must be at least 0 and below 1, such as 0.01")

    def __str__(self) -> str:
        if self.cost is not None:
            return (
                f"least cost at p_target {self.cost.p_target:g}, c_miss {self.cost.c_miss:g}, c_fa {self.cost.c_fa:g}"
            )
        return "equal error rate" if self.far is None else f"FAR at most {self.far:g}"


def choose_threshold(scores: npt.ArrayLike, labels: npt.ArrayLike, rule: ThresholdRule) -> float:
    """Chooses a threshold on these trials by the rule, half-way between two scores if possible.

    Args:
      scores: [trials], finite.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.
      rule: the rule. Among equally good thresholds the lowest is taken.

    Raises:
      ScoringError: as `error_rates`, or only a threshold that rejects every trial satisfies the rule.
    """
    if rule.eer:
        return eer_threshold(scores, labels)
    rates = error_rates(scores, labels)
    if rule.cost is None:
        best = int(np.argmax(rates.far <= rule.far))
    else:
        best = int(np.argmin(rule.cost.miss * rates.frr + rule.cost.false_alarm * rates.far))
    upper = float(rates.thresholds[best])
    if not np.isfinite(upper):
        raise ScoringError(f"{rule}: on these trials only rejecting every trial does that; take another rule or model")
    if best == 0:
        return upper
    lower = float(rates.thresholds[best - 1])
    middle = lower / 2 + upper / 2
    return middle if lower < middle <= upper else upper


def operating_point(
    threshold: float, scores: npt.ArrayLike, labels: npt.ArrayLike, *, trials: str, llr: bool = False
) -> dict[str, Any]:
    """Makes an entry of operating_points.json in a bundle: error rates at a threshold, and other figures of the trials.

    Args:
      threshold: lowest score that is accepted.
      scores, labels: as for `choose_threshold`.
      trials: name of the list.
      llr: whether the scores are log-likelihood ratios.
    """
    labels = np.asarray(labels)
    far, frr = far_frr(scores, labels, threshold)
    point = {
        "threshold": threshold,
        "far": far,
        "frr": frr,
        "trials": trials,
        "n_trials": len(labels),
        "n_targets": int(np.count_nonzero(labels)),
        "eer": eer(scores, labels),
        "min_dcf": min_dcf(scores, labels),
    }
    return point | ({"cllr": cllr(scores, labels), "min_cllr": min_cllr(scores, labels)} if llr else {})
