"""Turns embeddings into a score, in the way that the publisher or the owner of the model scores."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, Float32

from ecapa_jax.config import ScoringName
from ecapa_jax.errors import ConfigError
from ecapa_jax.modes import in_library_modes
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
"""Scorings that can replace the one of the model; they bring no threshold."""

WINDOWS = 5
WINDOW_SAMPLES = 300 * 160 + 240
"""The second view of `whole_and_windows`: five windows of 3.015 s at 16 kHz."""


def _cosine(a: Float[np.ndarray, " embedding"], b: Float[np.ndarray, " embedding"]) -> float:
    """Computes the cosine of two embeddings on the host, where nothing has to be compiled."""
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.sum(a * b) / max(lengths, EPSILON))


MAPS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "cosine": (lambda cosine: cosine, lambda score: score),
    "half": (lambda cosine: (cosine + 1) / 2, lambda score: 2 * score - 1),
}
"""For each score map, the function from cosine to score and its inverse."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """The answer to one trial.

    Attributes:
      score: the score of the two recordings; by default the cosine of their embeddings.
      same_speaker: whether score >= threshold; None without a threshold.
      threshold: the threshold that was used; None if neither the caller nor the model gives one.
      score_type: the type of the score: `cosine` and `half` lie in [-1, 1], `normalised` and `llr` are not bounded.
      speech: whether somebody is heard to speak in each recording. Without speech the score means nothing.
    """

    score: float
    same_speaker: bool | None
    threshold: float | None
    score_type: ScoreType = "cosine"
    speech: tuple[bool, bool] = (True, True)


class Scorer:
    """The scoring of one model.

    Attributes:
      scoring: the steps from embeddings to the score, and the threshold.
      embedding_mean: [D], the mean embedding, if the model brings one.
      cohort: the embeddings with which scores are normalised, if the model brings any.
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
            rows = jax.device_put(self.centre(cohort.embeddings))
            self._statistics = jax.jit(lambda pair: cohort_statistics(pair, rows, scoring.top_n))

    def centre(self, embeddings: Float32[np.ndarray, "*batch embedding"]) -> Float32[np.ndarray, "*batch embedding"]:
        """Subtracts the mean embedding if the scoring asks for it."""
        mean = self.embedding_mean if self.scoring.subtract_mean else None
        return embeddings if mean is None else embeddings - np.asarray(mean, np.float32)

    def with_scoring(self, name: ScoringName) -> Scorer:
        """Returns a scorer of the same model with another scoring; it keeps the threshold if both scales allow it.

        Raises:
          ConfigError: the scoring is unknown, or needs a mean embedding that the model does not bring.
        """
        if name == "publisher":
            return self
        if name not in NAMED:
            raise ConfigError(f"scoring {name!r} is unknown; known: publisher, {', '.join(NAMED)}")
        return Scorer(_with_threshold(NAMED[name], self.scoring), self.embedding_mean, self.cohort)

    @property
    def scale(self) -> str:
        """A description of the score in words."""
        return scoring_text(dataclasses.asdict(self.scoring))

    @property
    def n_views(self) -> int:
        """Number of embeddings that represent a recording."""
        return 1 + WINDOWS * (self.scoring.views == "whole_and_windows")

    def views(self, waveform: Float32[np.ndarray, " samples"]) -> list[Float32[np.ndarray, " view_samples"]]:
        """Cuts the views of a recording: the whole recording, and its windows if the scoring needs them.

        Windows start at equal distances (rounded down). A recording shorter than a window is repeated to fill it.

        Reference: `ECAPAModel.eval_network` of TaoRuijie/ECAPA-TDNN.
        """
        if self.scoring.views == "whole":
            return [waveform]
        long = np.resize(waveform, WINDOW_SAMPLES) if len(waveform) < WINDOW_SAMPLES else waveform
        starts = np.linspace(0, len(long) - WINDOW_SAMPLES, WINDOWS).astype(int)
        return [waveform, *(long[start : start + WINDOW_SAMPLES] for start in starts)]

    @in_library_modes
    def score(
        self,
        a: Float[np.ndarray, "views embedding"],
        b: Float[np.ndarray, "views embedding"],
        seconds: Sequence[float] | None = None,
    ) -> float:
        """Scores two recordings from the embeddings of their views; `scoring.score_type` is the type of the score.

        Args:
          a, b: embeddings of the views of each recording.
          seconds: lengths of both recordings; only a calibration with duration needs them.

        Raises:
          ConfigError: the number of views is wrong, or the calibration needs the seconds.
        """
        if len(a) != self.n_views or len(b) != self.n_views:
            raise ConfigError(
                f"this model needs {self.n_views} embedding(s) for each recording, got {len(a)} and {len(b)}: take "
                f"them from embed_views, or load the model with scoring='cosine'"
            )
        left, right = self.centre(a), self.centre(b)
        value = _cosine(left[0], right[0])
        if self.scoring.views == "whole_and_windows":
            value = 0.5 * (value + float(score_matrix(left[1:], right[1:]).mean()))
        value = min(max(value, -1.0), 1.0)
        if self.scoring.normalisation == "s_norm":
            statistics = self._statistics(np.concatenate([left, right]))
            value = float(s_norm(np.array(value, np.float32), statistics[0], statistics[1]))
        if self.scoring.calibration is not None:
            return self._calibrate(value, a[0], b[0], seconds)
        return MAPS[self.scoring.score_map][0](value)

    def _calibrate(self, value: float, a: np.ndarray, b: np.ndarray, seconds: Sequence[float] | None) -> float:
        calibration = self.scoring.calibration
        assert calibration is not None
        if "duration" in calibration.measures and (seconds is None or len(seconds) != 2):
            raise ConfigError("this model's calibration needs the seconds of both recordings: pass seconds=(a, b)")
        pairs = {"duration": seconds, "magnitude": (np.linalg.norm(a), np.linalg.norm(b))}
        sides = [np.asarray(pairs[name], np.float32) for name in calibration.measures]
        columns = np.concatenate([quality(side[:1], side[1:])[0] for side in sides]) if sides else None
        return float(calibrate(calibration, np.array(value, np.float32), columns))


def check_threshold(threshold: float, scoring: Scoring = NAMED["cosine"]) -> float:
    """Returns the threshold if it lies in the range of the score.

    Raises:
      ConfigError: the threshold is not a number, or lies outside the range of the score.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real):
        raise ConfigError(f"the threshold is {threshold!r}, which is no number: give one such as 0.3")
    if not scoring.allows(threshold):
        what = SCORE_TYPES[scoring.score_type]
        where = "a threshold lies in [-1, 1], as scores do" if scoring.bounded else "a threshold is a finite number"
        raise ConfigError(f"the threshold is {threshold}; {where}: the score is {what}")
    return threshold


def _with_threshold(scoring: Scoring, other: Scoring) -> Scoring:
    """Gives `scoring` the threshold of `other`, converted to its scale, unless the two order trials differently."""
    same_cosine = (scoring.views, scoring.subtract_mean) == (other.views, other.subtract_mean)
    if other.threshold is None or not same_cosine or other.score_type not in MAPS:
        return scoring
    if scoring.score_map == other.score_map:
        return dataclasses.replace(scoring, threshold=other.threshold)
    cosine_threshold = MAPS[other.score_map][1](other.threshold)
    return dataclasses.replace(scoring, threshold=MAPS[scoring.score_map][0](cosine_threshold))
