"""How a model's embeddings become scores: plain data, stored in a bundle's model.json."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from ecapa_jax.config import Checked, from_dict

MEASURES = ("duration", "magnitude")
"""Seconds of a recording, and length of its embedding. Each enters as the logarithms of a trial's lower and higher."""

_LATER: dict[str, Any] = {
    "views": "whole", "score_map": "cosine", "normalisation": "none", "top_n": None, "calibration": None,
}  # fmt: skip
"""What bundles from before these fields mean."""

ScoreType = Literal["cosine", "half", "normalised", "llr"]
SCORE_TYPES: dict[ScoreType, str] = {
    "cosine": "a cosine, from -1 to 1",
    "half": "(cosine + 1) / 2, from 0 to 1",
    "normalised": "standard deviations above the cohort's cosines, not bounded",
    "llr": "a log-likelihood ratio (natural), not bounded",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration(Checked):
    """An affine map from a score, and the trial's quality, to a log-likelihood ratio.

    Attributes:
      offset: added.
      weight: of the score; positive, so that a higher score never means less alike.
      measures: quality measures it uses, of `MEASURES`.
      measure_weights: of log lower and log higher value of each measure in turn.
    """

    offset: float
    weight: float
    measures: tuple[str, ...] = ()
    measure_weights: tuple[float, ...] = ()

    def _check(self) -> None:
        unknown = [name for name in self.measures if name not in MEASURES]
        self._require(not unknown, f"unknown quality measure {unknown[:1]}; known: {', '.join(MEASURES)}")
        self._require(
            len(self.measure_weights) == 2 * len(self.measures),
            f"{len(self.measures)} quality measures have {len(self.measure_weights)} weights, not 2 each",
        )
        finite = all(map(math.isfinite, (self.offset, self.weight, *self.measure_weights)))
        self._require(finite and self.weight > 0, "weights must be finite, and that of the score positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring(Checked):
    """How a model scores: as its publisher does, or as its owner has set it up.

    The order: mean, cosine, normalisation, calibration; or mean, cosine, score map.

    Attributes:
      threshold: accept at this score or above; None where none is published or set.
      subtract_mean: subtract the stored mean embedding before the cosine.
      views: what stands for a recording: the `whole`, or `whole_and_windows`, whose score is the mean of the whole
        recordings' cosine and of the mean cosine of five windows of one with five of the other.
      score_map: from cosine to score: none, or `half`, (cosine + 1) / 2.
      normalisation: none, or S-norm with the stored cohort.
      top_n: of S-norm, how many cohort cosines count, which makes it AS-norm; None: all.
      calibration: to a log-likelihood ratio; None: none.
    """

    threshold: float | None = None
    subtract_mean: bool = False
    views: Literal["whole", "whole_and_windows"] = "whole"
    score_map: Literal["cosine", "half"] = "cosine"
    normalisation: Literal["none", "s_norm"] = "none"
    top_n: int | None = None
    calibration: Calibration | None = None

    def _check(self) -> None:
        self._require(self.bounded or self.score_map == "cosine", "score_map 'half' is for cosines only")
        self._require(
            self.normalisation == "none" or self.views == "whole", "normalisation needs scores of whole recordings"
        )
        self._require(
            self.top_n is None or (self.normalisation == "s_norm" and self.top_n >= 2),
            f"top_n is {self.top_n}; it is of S-norm, and at least 2",
        )
        self._require(
            self.threshold is None or self.allows(self.threshold),
            f"threshold is {self.threshold}; the score is {SCORE_TYPES[self.score_type]}",
        )

    def allows(self, threshold: float) -> bool:
        """Whether a number is in the range of the score."""
        return -1 <= threshold <= 1 if self.bounded else math.isfinite(threshold)

    @property
    def bounded(self) -> bool:
        """Whether scores lie in [-1, 1]."""
        return self.score_type in ("cosine", "half")

    @property
    def score_type(self) -> ScoreType:
        """What the final score is; `SCORE_TYPES` says it in words."""
        if self.calibration is not None:
            return "llr"
        if self.normalisation != "none":
            return "normalised"
        return "half" if self.score_map == "half" else "cosine"


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
    """Speakers that normalise scores.

    Attributes:
      embeddings: [n, D] as the network gives them, or means of those.
      speakers: of each row; speakers in a trial must not be among them.
    """

    embeddings: Float32[np.ndarray, "n embedding"]
    speakers: tuple[str, ...]


def scoring_from_dict(data: Any) -> Scoring:
    """The scoring of a model.json, of this version or an earlier one.

    Raises:
      ConfigError: a key is unknown or missing, or a value is of the wrong type or out of range.
    """
    return from_dict(Scoring, _LATER | data if isinstance(data, dict) else data, "scoring")


def scoring_text(scoring: dict[str, Any]) -> str:
    """What a model's score is."""
    what = "mean of two views' cosines" if scoring.get("views") == "whole_and_windows" else "cosine"
    what += " less the mean embedding" * scoring["subtract_mean"]
    top_n, calibration = scoring.get("top_n"), scoring.get("calibration")
    if scoring.get("normalisation") == "s_norm":
        what += ", S-norm with the cohort" if top_n is None else f", AS-norm with the cohort's top {top_n}"
        what += ", in standard deviations" * (calibration is None)
    elif calibration is None:
        return f"({what} + 1) / 2, from 0 to 1" if scoring.get("score_map") == "half" else f"{what}, from -1 to 1"
    if calibration is not None:
        what += ", calibrated to a log-likelihood ratio"
        what += f" with {' and '.join(calibration['measures'])}" if calibration["measures"] else ""
    return what
