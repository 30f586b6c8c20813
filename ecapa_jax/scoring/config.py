"""How embeddings become scores: plain configuration data, stored in the model.json of a bundle."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from ecapa_jax.config import Checked, from_dict

MEASURES = ("duration", "magnitude")
"""Quality measures: the seconds of a recording, and the length of its embedding. A measure gives two numbers per trial:
the logarithm of the lower value and that of the higher value of the two recordings."""

_LATER_FIELDS: dict[str, Any] = {
    "views": "whole", "score_map": "cosine", "normalisation": "none", "top_n": None, "calibration": None,
}  # fmt: skip
"""Fields that early bundles lack, and the values that they mean."""

ScoreType = Literal["cosine", "half", "normalised", "llr"]
SCORE_TYPES: dict[ScoreType, str] = {
    "cosine": "a cosine, from -1 to 1",
    "half": "(cosine + 1) / 2, from 0 to 1",
    "normalised": "standard deviations above the cohort's cosines, not bounded",
    "llr": "a log-likelihood ratio (natural), not bounded",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration(Checked):
    """An affine map from a score and the quality measures of a trial to a log-likelihood ratio.

    Attributes:
      offset: constant term.
      weight: weight of the score; positive, so that a higher score never means that voices are less alike.
      measures: names of the quality measures that are used, from `MEASURES`.
      measure_weights: two weights for each measure: of the logarithm of the lower and of the higher value.
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
        self._require(finite and self.weight > 0, "weights must be finite, and the weight of the score positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring(Checked):
    """How a model scores: as its publisher does, or as its owner has set it up.

    The steps are, in this order, mean, cosine, normalisation and calibration; or mean, cosine and score map.

    Attributes:
      threshold: lowest score that is accepted; None if no threshold is published or set.
      subtract_mean: whether to subtract the stored mean embedding before the cosine.
      views: what represents a recording: the `whole` recording, or `whole_and_windows`. With the latter the score is
        the mean of two numbers: the cosine of the whole recordings, and the mean cosine between five windows of one
        recording and five windows of the other.
      score_map: map from cosine to score: the `cosine` itself, or `half`, which is (cosine + 1) / 2.
      normalisation: `none`, or S-norm with the stored cohort.
      top_n: number of highest cohort cosines that S-norm uses, which makes it AS-norm; None uses all.
      calibration: map to a log-likelihood ratio; None leaves the score as it is.
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
            f"top_n is {self.top_n}; it must be at least 2, and needs normalisation 's_norm'",
        )
        self._require(
            self.threshold is None or self.allows(self.threshold),
            f"threshold is {self.threshold}; the score is {SCORE_TYPES[self.score_type]}",
        )

    def allows(self, threshold: float) -> bool:
        """Whether a threshold lies in the range of the score."""
        return -1 <= threshold <= 1 if self.bounded else math.isfinite(threshold)

    @property
    def bounded(self) -> bool:
        """Whether scores lie in [-1, 1]."""
        return self.score_type in ("cosine", "half")

    @property
    def score_type(self) -> ScoreType:
        """The type of the final score; `SCORE_TYPES` describes it in words."""
        if self.calibration is not None:
            return "llr"
        if self.normalisation != "none":
            return "normalised"
        return "half" if self.score_map == "half" else "cosine"


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
    """The embeddings of other speakers, with which scores are normalised.

    Attributes:
      embeddings: [n, D], outputs of the network or means of outputs.
      speakers: the speaker of each row; must not contain a speaker of the trials.
    """

    embeddings: Float32[np.ndarray, "n embedding"]
    speakers: tuple[str, ...]


def scoring_from_dict(data: Any) -> Scoring:
    """Reads the scoring of a model.json of this version or an earlier one.

    Raises:
      ConfigError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    return from_dict(Scoring, _LATER_FIELDS | data if isinstance(data, dict) else data, "scoring")


def scoring_text(scoring: dict[str, Any]) -> str:
    """Describes the score of a model in words."""
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
