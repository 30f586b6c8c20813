"""Computes all figures of a list: error rates, costs and Cllr, with intervals, and for groups of trials."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from ecapa_jax.errors import ScoringError
from ecapa_jax.evaluation.trials import Trials
from ecapa_jax.scoring.bootstrap import Units, differences, intervals, resample
from ecapa_jax.scoring.counts import Cost, Counts, SortedTrials
from ecapa_jax.scoring.llr import cllr_losses, hull_eer, pool, pooled_cllr

DURATION_EDGES = (2.0, 4.0, 8.0)
"""Boundaries in seconds between the groups of the breakdown by duration."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What to measure.

    Attributes:
      costs: detection costs.
      fars: false acceptance rates at which the false rejection rate is reported.
      threshold: threshold at which decisions are counted; None counts no decisions.
      llr: whether scores are log-likelihood ratios, for which Cllr and costs at the Bayes threshold are meaningful.
      resamples: number of resamples of the bootstrap; 0 computes no intervals.
      confidence: confidence level of the intervals.
      seed: seed of the bootstrap.
    """

    costs: tuple[Cost, ...] = (Cost(), Cost(p_target=0.05))
    fars: tuple[float, ...] = (0.01, 0.001)
    threshold: float | None = None
    llr: bool = False
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if bad := [far for far in self.fars if not 0 <= far <= 1]:
            raise ScoringError(f"a false acceptance rate is {bad[0]}; it must be from 0 to 1")
        if self.resamples < 0:
            raise ScoringError(f"{self.resamples} resamples; give 0 for no intervals, or about 1000")
        if not 0 < self.confidence < 1:
            raise ScoringError(f"the confidence is {self.confidence}; it must be between 0 and 1, such as 0.95")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One figure of a list.

    Attributes:
      value: the figure; a rate is a fraction of 1.
      low, high: interval of the figure, if it has one.
    """

    value: float
    low: float | None = None
    high: float | None = None


def units_of(trials: Trials) -> tuple[Units, str]:
    """Returns the units that resampling draws, and their name: speakers if they are known, otherwise files."""
    if trials.speakers is None:
        return Units.of(trials.enrol, trials.test), "file"
    numbers = np.unique(np.array(trials.speakers), return_inverse=True)[1]
    return Units.of(numbers[trials.enrol], numbers[trials.test]), "speaker"


def measure(
    scores: Float64[np.ndarray, " trials"], trials: Trials, settings: EvaluationSettings
) -> tuple[dict[str, Measurement], list[str]]:
    """Computes figures by name, and remarks on how they were computed.

    Raises:
      ScoringError: there is only one kind of trial, or a score is not finite.
    """
    ordered = SortedTrials.of(scores, trials.known_labels)
    figures = {name: Measurement(value) for name, value in _compute_figures(ordered, settings).items()}
    notes = []
    if settings.resamples:
        units, kind = units_of(trials)
        drawn = _ResampledFigures(ordered, settings)
        try:
            samples = resample([ordered], units, drawn, n=settings.resamples, seed=settings.seed)[:, 0]
        except ScoringError as error:
            notes.append(f"no intervals: {error}")
        else:
            spreads = intervals(samples, settings.confidence)
            for name, spread in zip(drawn.names, spreads, strict=True):
                figures[name] = dataclasses.replace(figures[name], low=spread.low, high=spread.high)
            notes.append(_interval_note(trials, settings, units.n, kind))
    if trials.repeated:
        notes.append(f"{trials.repeated} trials repeat another one; they count as the list has them")
    pooled = pool(ordered)
    figures["rocch_eer"], figures["min_cllr"] = Measurement(hull_eer(pooled)), Measurement(pooled_cllr(pooled))
    return figures, notes


def compare(
    scores: Float64[np.ndarray, " trials"],
    baseline: Float64[np.ndarray, " trials"],
    trials: Trials,
    settings: EvaluationSettings,
) -> dict[str, dict[str, float]]:
    """Computes the difference of each figure to that of a baseline, on the same trials, with interval and p-value.

    Raises:
      ScoringError: as `differences`.
    """
    systems = [SortedTrials.of(values, trials.known_labels) for values in (baseline, scores)]
    names = [name for name in _compute_figures(systems[0], settings) if name == "eer" or name.startswith("min_dcf")]

    def figures(counts: Counts) -> list[float]:
        return [counts.eer(), *counts.min_dcfs(list(settings.costs))]

    units, _ = units_of(trials)
    n = settings.resamples or EvaluationSettings.resamples
    found = differences(systems, units, figures, n=n, seed=settings.seed, confidence=settings.confidence)
    return {name: dataclasses.asdict(difference) for name, difference in zip(names, found, strict=True)}


def duration_groups(seconds: Float64[np.ndarray, " trials"]) -> np.ndarray:
    """Returns the group of each trial, as text, by the duration of its shorter recording."""
    edges = ["0", *(f"{edge:g}" for edge in DURATION_EDGES)]
    names = [f"{low}-{high} s" for low, high in itertools.pairwise(edges)] + [f"{edges[-1]} s and more"]
    return np.array(names)[np.searchsorted(DURATION_EDGES, seconds, side="right")]


def breakdown(
    scores: Float64[np.ndarray, " trials"],
    labels: Bool[np.ndarray, " trials"],
    columns: Mapping[str, np.ndarray],
    cost: Cost,
) -> dict[str, list[dict[str, Any]]]:
    """Computes EER and minDCF of the trials with each value of each column; None if there is only one kind of trial.

    Values are in order of appearance, or sorted if they are numbers.
    """
    return {
        name: [_group(value, scores[values == value], labels[values == value], cost) for value in _order_values(values)]
        for name, values in columns.items()
    }


def _group(value: str, scores: np.ndarray, labels: np.ndarray, cost: Cost) -> dict[str, Any]:
    n_targets = int(labels.sum())
    group = {"value": value, "n_trials": len(labels), "n_targets": n_targets, "eer": None, "min_dcf": None}
    if 0 < n_targets < len(labels):
        counts = SortedTrials.of(scores, labels).count()
        group.update(eer=counts.eer(), min_dcf=counts.min_dcf(cost))
    return group


def _order_values(values: np.ndarray) -> list[str]:
    def key(value: str) -> tuple[float, str]:
        head = value.split("-")[0].split(" ")[0]
        return (float(head) if head.replace(".", "", 1).isdigit() else float("inf"), value)

    return sorted(np.unique(values).tolist(), key=key)


def _compute_figures(ordered: SortedTrials, settings: EvaluationSettings) -> dict[str, float]:
    drawn = _ResampledFigures(ordered, settings)
    return dict(zip(drawn.names, drawn(ordered.count()), strict=True))


class _ResampledFigures:
    """Computes the figures of a resample: all but those of the convex hull, which is too slow for every resample."""

    def __init__(self, ordered: SortedTrials, settings: EvaluationSettings):
        self._settings = settings
        self.names = ["eer", *(f"min_dcf_{cost_name(cost)}" for cost in settings.costs)]
        self.names += [f"frr_at_far_{far:g}" for far in settings.fars]
        if settings.threshold is not None:
            self.names += ["far", "frr"]
        if settings.llr:
            self.names += ["cllr", *(f"act_dcf_{cost_name(cost)}" for cost in settings.costs)]
            self._target_losses = cllr_losses(ordered.scores[ordered.targets], True)
            self._nontarget_losses = cllr_losses(ordered.scores[ordered.nontargets], False)

    def __call__(self, counts: Counts) -> list[float]:
        settings = self._settings
        values = [counts.eer(), *counts.min_dcfs(list(settings.costs))]
        values += [counts.frr_at_far(far) for far in settings.fars]
        if settings.threshold is not None:
            values += counts.far_frr(settings.threshold)
        if settings.llr:
            values += [self._compute_cllr(counts), *(counts.act_dcf(cost) for cost in settings.costs)]
        return values

    def _compute_cllr(self, counts: Counts) -> float:
        targets = np.einsum("i,i", counts.target_weights, self._target_losses) / counts.n_targets
        return (
            float(targets + np.einsum("i,i", counts.nontarget_weights, self._nontarget_losses) / counts.n_nontargets)
            / 2
        )


def cost_name(cost: Cost) -> str:
    """Names a cost by `p_target`, and by its costs if they are not 1."""
    costs = "" if cost.c_miss == cost.c_fa == 1 else f"_{cost.c_miss:g}_{cost.c_fa:g}"
    return f"{cost.p_target:g}{costs}"


def _interval_note(trials: Trials, settings: EvaluationSettings, n: int, kind: str) -> str:
    text = f"intervals: {settings.confidence:.0%}, bootstrap of {n} {kind}s, {settings.resamples} resamples"
    if kind == "speaker":
        return f"{text}, seed {settings.seed}; speakers from {trials.speaker_source}"
    return (
        f"{text}, seed {settings.seed}; no speaker is known, so files are drawn, which makes the intervals too narrow: "
        "give --utt2spk, or columns enrol_speaker and test_speaker"
    )
