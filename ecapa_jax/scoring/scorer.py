"""From embeddings to a score, in the way the model's publisher or owner scores. Pure data and functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, Float32

from ecapa_jax.config import ScoringName
from ecapa_jax.errors import ConfigError
from ecapa_jax.scoring.calibration import calibrate, quality
from ecapa_jax.scoring.config import SCORE_TYPES, Cohort, ScoreType, Scoring, scoring_text
from ecapa_jax.scoring.cosine import EPSILON, score_matrix
from ecapa_jax.scoring.normalisation import cohort_statistics, s_norm

NAMED: dict[str, Scoring] = {
    "cosine": Scoring(),
    "cosine_less_mean": Scoring(subtract_mean=True),
    "half": Scoring(score_map="half"),
    "two_views": Scoring(views="whole_and_windows"),
}
"""Scorings that can stand in for the publisher's; none has a threshold of its own."""

WINDOWS = 5
WINDOW_SAMPLES = 300 * 160 + 240
"""The second view of `whole_and_windows`: five windows of 3.015 s at 16 kHz."""


def _cosine(a: Float[np.ndarray, " embedding"], b: Float[np.ndarray, " embedding"]) -> float:
    """`scoring.cosine.cosine` of two on the host, where nothing need be compiled."""
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.sum(a * b) / max(lengths, EPSILON))


MAPS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "cosine": (lambda cosine: cosine, lambda score: score),
    "half": (lambda cosine: (cosine + 1) / 2, lambda score: 2 * score - 1),
}
"""From a cosine to the score, and back."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """The answer to one trial.

    Attributes:
      score: as the model's scoring says; without one, the cosine of the two embeddings.
      same_speaker: score >= threshold; None without a threshold.
      threshold: the one used; None where neither the caller nor the model gives one.
      score_type: what the score is: `cosine` and `half` lie in [-1, 1], `normalised` and `llr` are not bounded.
      speech: whether somebody is heard to speak in each recording; where nobody is, the score means nothing.
    """

    score: float
    same_speaker: bool | None
    threshold: float | None
    score_type: ScoreType = "cosine"
    speech: tuple[bool, bool] = (True, True)


class Scorer:
    """The scoring of one model.

    Attributes:
      scoring: what the publisher, or whoever overrides it, scores with.
      embedding_mean: [D], where the model brings one.
      cohort: speakers that normalise scores, where there are any.
    """

    def __init__(
        self,
        scoring: Scoring,
        embedding_mean: Float[np.ndarray, " embedding"] | None = None,
        cohort: Cohort | None = None,
    ):
        if scoring.subtract_mean and embedding_mean is None:
            raise ConfigError(
                "scoring subtracts the mean embedding, but the model brings none: convert it with "
                "--embedding-mean FILE.npy, or take another scoring"
            )
        self.scoring = scoring
        self.embedding_mean = embedding_mean
        self.cohort = cohort
        if scoring.normalisation != "none":
            if cohort is None:
                raise ConfigError(
                    "scores are normalised with a cohort, but the model brings none: see ecapa-jax cohort"
                )
            rows = jax.device_put(self.centred(cohort.embeddings))
            self._statistics = jax.jit(lambda pair: cohort_statistics(pair, rows, scoring.top_n))

    def centred(self, embeddings: Float32[np.ndarray, "*batch embedding"]) -> Float32[np.ndarray, "*batch embedding"]:
        """Embeddings less the mean embedding, where this model scores so."""
        mean = self.embedding_mean if self.scoring.subtract_mean else None
        return embeddings if mean is None else embeddings - np.asarray(mean, np.float32)

    def named(self, name: ScoringName) -> Scorer:
        """This model scored in another way. The threshold goes along where it still means the same.

        Raises:
          ConfigError: there is no such scoring, or it needs a mean embedding that the model does not bring.
        """
        if name == "publisher":
            return self
        if name not in NAMED:
            raise ConfigError(f"scoring {name!r} is unknown; known: publisher, {', '.join(NAMED)}")
        return Scorer(_with_threshold(NAMED[name], self.scoring), self.embedding_mean, self.cohort)

    @property
    def scale(self) -> str:
        """What the score is, for people."""
        return scoring_text(dataclasses.asdict(self.scoring))

    @property
    def n_views(self) -> int:
        """Embeddings that a recording is scored by."""
        return 1 + WINDOWS * (self.scoring.views == "whole_and_windows")

    def views(self, waveform: Float32[np.ndarray, " samples"]) -> list[Float32[np.ndarray, " view_samples"]]:
        """The waveforms whose embeddings stand for a recording: the whole, and where the model says so its windows.

        Windows start at equal distances (rounded down); a recording shorter than one is repeated to its length.

        Reference: `ECAPAModel.eval_network` of TaoRuijie/ECAPA-TDNN.
        """
        if self.scoring.views == "whole":
            return [waveform]
        long = np.resize(waveform, WINDOW_SAMPLES) if len(waveform) < WINDOW_SAMPLES else waveform
        starts = np.linspace(0, len(long) - WINDOW_SAMPLES, WINDOWS).astype(int)
        return [waveform, *(long[start : start + WINDOW_SAMPLES] for start in starts)]

    def score(
        self,
        a: Float[np.ndarray, "views embedding"],
        b: Float[np.ndarray, "views embedding"],
        seconds: Sequence[float] | None = None,
    ) -> float:
        """The score of two recordings from their views' embeddings; `scoring.score_type` says what it is.

        Args:
          a, b: embeddings of each recording's views.
          seconds: length of both recordings; only a calibration with duration needs it.

        Raises:
          ConfigError: there are not as many views as this model scores with, or it needs the seconds.
        """
        if len(a) != self.n_views or len(b) != self.n_views:
            raise ConfigError(
                f"this model scores with {self.n_views} embedding(s) a recording, got {len(a)} and {len(b)}: take them "
                f"from embed_views, or load it with scoring='cosine'"
            )
        left, right = self.centred(a), self.centred(b)
        value = _cosine(left[0], right[0])
        if self.scoring.views == "whole_and_windows":
            value = 0.5 * (value + float(score_matrix(left[1:], right[1:]).mean()))
        value = min(max(value, -1.0), 1.0)
        if self.scoring.normalisation == "s_norm":
            statistics = self._statistics(np.concatenate([left, right]))
            value = float(s_norm(np.array(value, np.float32), statistics[0], statistics[1]))
        if self.scoring.calibration is not None:
            return self._calibrated(value, a[0], b[0], seconds)
        return MAPS[self.scoring.score_map][0](value)

    def _calibrated(self, value: float, a: np.ndarray, b: np.ndarray, seconds: Sequence[float] | None) -> float:
        calibration = self.scoring.calibration
        assert calibration is not None
        if "duration" in calibration.measures and (seconds is None or len(seconds) != 2):
            raise ConfigError("this model's calibration needs the seconds of both recordings: pass seconds=(a, b)")
        pairs = {"duration": seconds, "magnitude": (np.linalg.norm(a), np.linalg.norm(b))}
        sides = [np.asarray(pairs[name], np.float32) for name in calibration.measures]
        columns = np.concatenate([quality(side[:1], side[1:])[0] for side in sides]) if sides else None
        return float(calibrate(calibration, np.array(value, np.float32), columns))


def checked_threshold(threshold: float, scoring: Scoring = NAMED["cosine"]) -> float:
    """The threshold, if it can be one of this scoring.

    Raises:
      ConfigError: it is not a number, or outside the range of the score.
    """
    if not scoring.allows(threshold):
        what = SCORE_TYPES[scoring.score_type]
        where = "a threshold lies in [-1, 1], as scores do" if scoring.bounded else "a threshold is a finite number"
        raise ConfigError(f"the threshold is {threshold}; {where}: the score is {what}")
    return threshold


def _with_threshold(scoring: Scoring, other: Scoring) -> Scoring:
    """`scoring` with the threshold of `other`, on its own scale; none if the two order trials differently."""
    same_cosine = (scoring.views, scoring.subtract_mean) == (other.views, other.subtract_mean)
    if other.threshold is None or not same_cosine or other.score_type not in MAPS:
        return scoring
    if scoring.score_map == other.score_map:
        return dataclasses.replace(scoring, threshold=other.threshold)
    cosine_threshold = MAPS[other.score_map][1](other.threshold)
    return dataclasses.replace(scoring, threshold=MAPS[scoring.score_map][0](cosine_threshold))
