"""Choosing a threshold from trials, and what it costs there."""

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
    """How to choose; exactly one.

    Attributes:
      eer: where both error rates are closest.
      far: the lowest threshold that keeps the false acceptance rate at or below it.
      cost: where this detection cost is least.

    Raises:
      ScoringError: not exactly one is given, or the rate is out of range.
    """

    eer: bool = False
    far: float | None = None
    cost: Cost | None = None

    def __post_init__(self) -> None:
        if self.eer + (self.far is not None) + (self.cost is not None) != 1:
            raise ScoringError("choose the threshold by exactly one of: equal error rate, a target FAR, a cost")
        if self.far is not None and not 0 <= self.far < 1:
            raise ScoringError(f"the target FAR is {self.far}; it must be from 0 to below 1, as 0.01")

    def __str__(self) -> str:
        if self.cost is not None:
            return (
                f"least cost at p_target {self.cost.p_target:g}, c_miss {self.cost.c_miss:g}, c_fa {self.cost.c_fa:g}"
            )
        return "equal error rate" if self.far is None else f"FAR at most {self.far:g}"


def choose_threshold(scores: npt.ArrayLike, labels: npt.ArrayLike, rule: ThresholdRule) -> float:
    """The threshold that the rule wants on these trials, half-way between two scores where there is room.

    Args:
      scores: [trials], finite.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.
      rule: of several thresholds that it likes equally, the lowest is taken.

    Raises:
      ScoringError: as `error_rates`; or the rule leaves nothing but to reject every trial.
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
    """An entry of a bundle's operating_points.json: error rates at a threshold, and what the trials say beside it.

    Args:
      threshold: accept from here on.
      scores, labels: as for `choose_threshold`.
      trials: what the list is called.
      llr: the scores are log-likelihood ratios.
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
