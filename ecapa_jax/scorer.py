"""From embeddings to a score, in the way the model's publisher scores. Pure data and functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from ecapa_jax.errors import ConfigError
from ecapa_jax.io.bundle import Scoring
from ecapa_jax.io.card import scoring_text
from ecapa_jax.scoring.cosine import cosine, score_matrix

ScoringName = Literal["publisher", "cosine", "cosine_less_mean", "half", "two_views"]

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

MAPS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "cosine": (lambda cosine: cosine, lambda score: score),
    "half": (lambda cosine: (cosine + 1) / 2, lambda score: 2 * score - 1),
}
"""From a cosine to the score, and back."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """The answer to one trial.

    Attributes:
      score: as the model's scoring says, in [-1, 1]; without one, the cosine of the two embeddings.
      same_speaker: score >= threshold; None without a threshold.
      threshold: the one used; None where neither the caller nor the model gives one.
    """

    score: float
    same_speaker: bool | None
    threshold: float | None


class Scorer:
    """The scoring of one model.

    Attributes:
      scoring: what the publisher, or whoever overrides it, scores with.
      embedding_mean: [D], where the model brings one.
    """

    def __init__(self, scoring: Scoring, embedding_mean: Float[np.ndarray, " embedding"] | None = None):
        if scoring.subtract_mean and embedding_mean is None:
            raise ConfigError(
                "scoring subtracts the mean embedding, but the model brings none: convert it with "
                "--embedding-mean FILE.npy, or take another scoring"
            )
        self.scoring = scoring
        self.embedding_mean = embedding_mean

    def named(self, name: ScoringName) -> Scorer:
        """This model scored in another way. The threshold goes along where it still means the same.

        Raises:
          ConfigError: there is no such scoring, or it needs a mean embedding that the model does not bring.
        """
        if name == "publisher":
            return self
        if name not in NAMED:
            raise ConfigError(f"scoring {name!r} is unknown; known: publisher, {', '.join(NAMED)}")
        return Scorer(_with_threshold(NAMED[name], self.scoring), self.embedding_mean)

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

    def score(self, a: Float[np.ndarray, "views embedding"], b: Float[np.ndarray, "views embedding"]) -> float:
        """The score of two recordings from their views' embeddings; in [-1, 1], and in [0, 1] with the map `half`.

        Raises:
          ConfigError: there are not as many views as this model scores with.
        """
        if len(a) != self.n_views or len(b) != self.n_views:
            raise ConfigError(
                f"this model scores with {self.n_views} embedding(s) a recording, got {len(a)} and {len(b)}: take them "
                f"from embed_views, or load it with scoring='cosine'"
            )
        if self.scoring.subtract_mean and self.embedding_mean is not None:
            a, b = a - self.embedding_mean, b - self.embedding_mean
        value = float(cosine(a[0], b[0]))
        if self.scoring.views == "whole_and_windows":
            value = 0.5 * (value + float(np.mean(score_matrix(a[1:], b[1:]))))
        return MAPS[self.scoring.score_map][0](min(max(value, -1.0), 1.0))


def checked_threshold(threshold: float) -> float:
    """The threshold, if it is a score.

    Raises:
      ConfigError: it is outside [-1, 1] or not a number.
    """
    if not -1.0 <= threshold <= 1.0:
        raise ConfigError(f"the threshold is {threshold}; a threshold lies in [-1, 1], as scores do")
    return threshold


def _with_threshold(scoring: Scoring, other: Scoring) -> Scoring:
    """`scoring` with the threshold of `other`, on its own scale; none if the two order trials differently."""
    same_cosine = (scoring.views, scoring.subtract_mean) == (other.views, other.subtract_mean)
    if other.threshold is None or not same_cosine:
        return scoring
    if scoring.score_map == other.score_map:
        return dataclasses.replace(scoring, threshold=other.threshold)
    cosine_threshold = MAPS[other.score_map][1](other.threshold)
    return dataclasses.replace(scoring, threshold=MAPS[scoring.score_map][0](cosine_threshold))
