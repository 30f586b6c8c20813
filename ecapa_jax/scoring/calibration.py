"""Calibration: maps scores to log-likelihood ratios, so that a threshold follows from prior and costs alone.

    llr = offset + weight score + sum_i w_i quality_i

`fit` learns the weights from one list of trials by prior-weighted logistic regression (float64, Newton); `calibrate`
applies them to any other list (jnp). Quality measures tell how reliable a score is: the score of two short recordings
is weaker evidence than the same score of two long ones.

Reference: Brümmer and du Preez 2006, "Application-Independent Evaluation of Speaker Detection" (Cllr); Brümmer and
de Villiers 2013, "The BOSARIS Toolkit" (prior-weighted objective); Thienpondt et al. 2021, "The IDLab VoxSRC-20
Submission" (quality measures).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Float64

from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring.config import MEASURES, Calibration
from ecapa_jax.scoring.cosine import AnyArray
from ecapa_jax.scoring.counts import Cost, check_trials

BALANCED = Cost(p_target=0.5)

MAX_STEPS = 100
GRADIENT = 1e-10
"""The solver stops when no element of the gradient is larger than `GRADIENT`, or after `MAX_STEPS` steps."""


def quality(a: Float[AnyArray, "*batch"], b: Float[AnyArray, "*batch"]) -> Float[Array, "*batch 2"]:
    """Returns the two columns of a quality measure: the logarithm of the lower and of the higher value of each trial.

    The values of `duration` are the seconds of each side, summed over the recordings of an enrolment. The values of
    `magnitude` are the lengths of the embeddings before the mean is subtracted, averaged over the recordings of an
    enrolment. The result is symmetric in the two sides. Values below 1e-3 are raised to 1e-3, so that silence stays
    finite.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    return jnp.log(jnp.maximum(jnp.stack([jnp.minimum(a, b), jnp.maximum(a, b)], axis=-1), 1e-3))


def calibrate(
    calibration: Calibration,
    scores: Float[AnyArray, "*batch"],
    qualities: Float[AnyArray, "*batch columns"] | None = None,
) -> Float[Array, "*batch"]:
    """Maps scores to log-likelihood ratios (natural logarithm).

    Args:
      calibration: from `fit` or a bundle.
      scores: scores of any shape, of the type that `fit` saw.
      qualities: `quality` of each measure of the calibration, concatenated in this order; None without measures.

    Raises:
      ScoringError: the number of quality columns is wrong.
    """
    columns = 0 if qualities is None else qualities.shape[-1]
    if columns != len(calibration.measure_weights):
        raise ScoringError(
            f"the calibration uses {' and '.join(calibration.measures) or 'no quality measures'}: it needs "
            f"{len(calibration.measure_weights)} quality columns, got {columns}"
        )
    ratios = calibration.offset + calibration.weight * jnp.asarray(scores)
    if qualities is None or not columns:
        return ratios
    weights = jnp.asarray(calibration.measure_weights, ratios.dtype)
    return ratios + jnp.sum(jnp.asarray(qualities) * weights, axis=-1)


def fit(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    qualities: Float[AnyArray, "trials columns"] | None = None,
    *,
    measures: tuple[str, ...] = (),
    cost: Cost = BALANCED,
    ridge: float = 0.0,
) -> Calibration:
    """Fits a calibration to trials by prior-weighted logistic regression.

    It minimises  p mean_targets log(1 + exp(-l)) + (1 - p) mean_others log(1 + exp(l)),  l = llr + logit(p),  plus
    ridge/2 times the squared weights of the standardised columns. p is the prior that leads to the same decisions with
    equal costs as `cost` does. With p = 1/2 this is Cllr. The problem is convex: the same trials always give the same
    calibration.

    Args:
      scores: [trials], finite.
      labels: [trials], 1 or True for a target trial, 0 or False for a non-target trial.
      qualities: as for `calibrate`.
      measures: names of the quality measures in `qualities`.
      cost: the detection cost for which decisions should be optimal; by default both errors cost the same.
      ridge: strength of the penalty on weights; needed if the scores separate the trials without an error.

    Raises:
      ScoringError: scores and labels differ in number, there is only one kind of trial, a value is not finite, a shape
        is wrong, the trials are separated without an error (and ridge is 0), or target trials don't score higher.
    """
    values, targets = check_trials(scores, labels)
    columns = np.column_stack([values, *_check_columns(qualities, len(values), measures)])
    centre, spread = columns.mean(axis=0), columns.std(axis=0)
    # A constant column carries no information; without this its weight would be arbitrary, with it the weight is 0.
    used = spread > 1e-12 * np.maximum(1.0, np.abs(centre))
    standard = (columns[:, used] - centre[used]) / spread[used]
    solution = _solve(standard, targets, cost, ridge)
    if ridge == 0 and used[0] and _separates(standard @ solution[1:], targets):
        raise ScoringError(
            "the scores separate these trials without an error, so that a calibration would be infinitely confident: "
            "use more or harder trials, or a ridge such as 1e-3"
        )
    weights = np.zeros(columns.shape[1])
    weights[used] = solution[1:] / spread[used]
    if weights[0] <= 0:
        raise ScoringError("target trials don't score higher than non-target trials: check labels and scores")
    offset = float(solution[0] - weights @ centre)
    return Calibration(
        offset=offset,
        weight=float(weights[0]),
        measures=measures,
        measure_weights=tuple(map(float, weights[1:])),
    )


def _solve(
    columns: Float64[np.ndarray, "trials columns"], targets: np.ndarray, cost: Cost, ridge: float
) -> Float64[np.ndarray, " weights"]:
    """Finds offset and weights at the minimum by Newton steps from 0, each halved until the loss falls.

    The step is a least-squares solution, which gives equal weights to equal columns.
    """
    from scipy.special import expit  # imported here, because scoring alone doesn't need SciPy

    design = np.column_stack([np.ones(len(columns)), columns])
    sign = np.where(targets, 1.0, -1.0)
    share = np.where(targets, cost.miss / targets.sum(), cost.false_alarm / (~targets).sum())
    share /= cost.miss + cost.false_alarm
    pull = np.full(design.shape[1], ridge)
    pull[0] = 0.0

    def margins(weights: np.ndarray) -> np.ndarray:
        return sign * (design @ weights - cost.bayes_threshold)

    def loss(weights: np.ndarray) -> float:
        return float(share @ np.logaddexp(0, -margins(weights)) + 0.5 * pull @ weights**2)

    weights = np.zeros(design.shape[1])
    for _ in range(MAX_STEPS):
        wrong = expit(-margins(weights))
        gradient = pull * weights - design.T @ (share * sign * wrong)
        if np.abs(gradient).max() < GRADIENT:
            break
        curvature = design.T @ ((share * wrong * (1 - wrong))[:, None] * design) + np.diag(pull)
        step, before = np.linalg.lstsq(curvature, -gradient, rcond=1e-10)[0], loss(weights)
        while loss(weights + step) > before and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights + step
    return weights


def _separates(values: np.ndarray, targets: np.ndarray) -> bool:
    """Whether a threshold divides the trials without an error (ties at the threshold count); no minimum exists then."""
    return bool(values[targets].min() >= values[~targets].max())


def _check_columns(
    qualities: Float[AnyArray, "trials columns"] | None, n_trials: int, measures: tuple[str, ...]
) -> list[np.ndarray]:
    if unknown := [name for name in measures if name not in MEASURES]:
        raise ScoringError(f"{unknown[0]!r} is not a quality measure; known: {', '.join(MEASURES)}")
    array = np.zeros((n_trials, 0)) if qualities is None else np.asarray(qualities, np.float64)
    if array.shape != (n_trials, 2 * len(measures)):
        raise ScoringError(
            f"quality columns have shape {array.shape}; {n_trials} trials and {len(measures)} measures need "
            f"({n_trials}, {2 * len(measures)})"
        )
    if not np.isfinite(array).all():
        raise ScoringError("a quality measure is not finite")
    return list(array.T)
