"""Score normalisation with a cohort of other speakers: Z-, T-, S- and AS-norm. Pure jnp and jit-able.

A raw cosine depends on the recording: a noisy recording scores higher, or lower, with everybody. The cohort shows how a
recording scores with speakers that are in no trial. Normalisation expresses a score in standard deviations above that.

    statistics = cohort_statistics(embeddings, cohort, top_n=300)                # once for each recording
    s_norm(scores, statistics[enrolment_rows], statistics[test_rows])            # once for each trial

References: Auckenthaler et al. 2000, "Score Normalization for Text-Independent Speaker Verification Systems" (Z, T);
Kenny 2010, "Bayesian Speaker Verification with Heavy-Tailed Priors" (S); Matejka et al. 2017, "Analysis of Score
Normalization in Multilingual Speaker Recognition" (AS, the variant "adaptive S-norm 1").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring.cosine import AnyArray, cosine, typed_jit, unit

BLOCK_SCORES = 2**24
"""Most scores held in memory at once (64 MiB in float32), but at least one row."""

SMALLEST_STD = 1e-6
"""Lower limit of the standard deviations used as divisors: float32 cosines are not finer."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mean", "std"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class CohortStatistics:
    """How embeddings score with a cohort. Indexing selects rows of both arrays: `statistics[rows]`.

    Attributes:
      mean: mean of the (top-N) cosines with the cohort.
      std: standard deviation of these cosines.
    """

    mean: Float[Array, "*batch"]
    std: Float[Array, "*batch"]

    def __getitem__(self, index: Any) -> CohortStatistics:
        """Indexes both arrays, as NumPy does."""
        return CohortStatistics(self.mean[index], self.std[index])


def subtract_mean(
    embeddings: Float[AnyArray, "*batch embedding"], mean: Float[AnyArray, " embedding"]
) -> Float[Array, "*batch embedding"]:
    """Subtracts the mean embedding of a training set, as WeSpeaker does before scoring.

    If trials are scored this way, the cohort embeddings need the same subtraction.
    """
    return jnp.asarray(embeddings) - jnp.asarray(mean)


def cohort_statistics(
    embeddings: Float[AnyArray, "n embedding"],
    cohort: Float[AnyArray, "m embedding"],
    top_n: int | None = None,
    *,
    unbiased: bool = False,
    block: int | None = None,
) -> CohortStatistics:
    """Returns mean and standard deviation of the cosines of each embedding with the cohort.

    With `top_n`, only the N highest cosines of each embedding count, so that each recording is compared with the most
    similar speakers. Memory holds one block of scores, never all scores. Without `top_n`, no scores are computed at
    all: mean and variance follow from the mean and covariance of the cohort.

    Args:
      embeddings: [n, D], vectors of any length.
      cohort: [m, D], one embedding for each utterance, or for each speaker (see `speaker_means`), none of them in the
        trials.
      top_n: number of highest cosines that count; None, or more than the size of the cohort, means all.
      unbiased: whether to divide the variance by N - 1 (SpeechBrain) instead of N (WeSpeaker).
      block: embeddings scored at once; None is as many as `BLOCK_SCORES` allow. It does not change the result.

    Returns:
      [n] means and standard deviations.

    Raises:
      ScoringError: fewer than two cosines would count.
    """
    size = len(cohort) if top_n is None else min(top_n, len(cohort))
    if size < 2:
        raise ScoringError(
            f"a cohort of {len(cohort)} with top_n={top_n} gives {size} score(s) per recording; at least 2 are needed"
        )
    rows, cohort = unit(embeddings), unit(cohort)
    correction = size / (size - 1) if unbiased else 1.0
    if size == len(cohort):
        mean, variance = _moments(rows, cohort)
    else:
        mean, variance = _top_moments(rows, cohort, size, block or max(1, BLOCK_SCORES // len(cohort)))
    return CohortStatistics(mean, jnp.sqrt(correction * variance))


@jax.jit
def _moments(
    rows: Float[Array, "n embedding"], cohort: Float[Array, "m embedding"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    centre = jnp.mean(cohort, axis=0)
    centred = cohort - centre
    dot = functools.partial(jnp.dot, precision=lax.Precision.HIGHEST)
    covariance = dot(centred.T, centred) / len(cohort)
    # Rounding can make a tiny variance negative.
    return dot(rows, centre), jnp.maximum(jnp.sum(dot(rows, covariance) * rows, axis=1), 0.0)


@functools.partial(jax.jit, static_argnames=("size", "block"))
def _top_moments(
    rows: Float[Array, "n embedding"], cohort: Float[Array, "m embedding"], size: int, block: int
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    def one(row: Float[Array, " embedding"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        scores = jnp.dot(cohort, row, precision=lax.Precision.HIGHEST)
        top, _ = lax.top_k(scores, size)
        return jnp.mean(top), jnp.var(top)

    return lax.map(one, rows, batch_size=min(block, max(1, len(rows))))


def z_norm(scores: Float[AnyArray, "*batch"], enrolment: CohortStatistics) -> Float[Array, "*batch"]:
    """Returns (score - mean) / std with the statistics of the enrolment, which must broadcast with the scores."""
    return (jnp.asarray(scores) - enrolment.mean) / jnp.maximum(enrolment.std, SMALLEST_STD)


def t_norm(scores: Float[AnyArray, "*batch"], test: CohortStatistics) -> Float[Array, "*batch"]:
    """Returns (score - mean) / std with the statistics of the test recording."""
    return z_norm(scores, test)


@typed_jit
def s_norm(
    scores: Float[AnyArray, "*batch"], enrolment: CohortStatistics, test: CohortStatistics
) -> Float[Array, "*batch"]:
    """Returns the mean of Z-norm and T-norm, which is symmetric in the two recordings.

    With statistics of the top N cosines this is AS-norm. For a score matrix pass `enrolment[:, None]` and `test[None]`.
    """
    return 0.5 * (z_norm(scores, enrolment) + t_norm(scores, test))


def as_norm(
    enrolments: Float[AnyArray, "*batch embedding"],
    tests: Float[AnyArray, "*batch embedding"],
    cohort: Float[AnyArray, "m embedding"],
    *,
    top_n: int | None = 300,
    unbiased: bool = False,
) -> Float[Array, "*batch"]:
    """Returns the AS-normalised cosine of corresponding embeddings: `s_norm` with the top-N statistics of both sides.

    The defaults are those of WeSpeaker (top 300, standard deviation over N). SpeechBrain's adaptive S-norm is
    `top_n=cohort_size, unbiased=True`; its S-norm is `top_n=None, unbiased=True`. If a recording is in several trials,
    it is cheaper to call `cohort_statistics` once for each recording and then `s_norm`.

    Args:
      enrolments, tests: embeddings of the trials.
      cohort: [m, D], embeddings of speakers that are in no trial.
      top_n: as for `cohort_statistics`, which also raises.

    Returns:
      Scores in standard deviations above the mean of the cohort; they are not bounded.
    """
    enrolments, tests = jnp.asarray(enrolments), jnp.asarray(tests)
    batch, width = enrolments.shape[:-1], enrolments.shape[-1]
    both = jnp.stack([enrolments, tests]).reshape(-1, width)
    statistics = cohort_statistics(both, cohort, top_n, unbiased=unbiased)
    statistics = jax.tree.map(lambda values: values.reshape(2, *batch), statistics)
    return s_norm(cosine(enrolments, tests), statistics[0], statistics[1])


def speaker_means(
    embeddings: Float[np.ndarray, "n embedding"], speakers: Sequence[str]
) -> tuple[list[str], Float[np.ndarray, "speakers embedding"]]:
    """Averages the embeddings of each speaker, without normalising their lengths, as WeSpeaker does for its cohort.

    Args:
      embeddings: [n, D].
      speakers: the speaker of each row.

    Returns:
      Speakers in sorted order, and their means [speakers, D] in the dtype of the embeddings.

    Raises:
      ScoringError: the number of speakers is not the number of rows.
    """
    if len(speakers) != len(embeddings):
        raise ScoringError(
            f"embeddings: {len(embeddings)}, speakers: {len(speakers)}; give one speaker for each embedding"
        )
    names, of_row, counts = np.unique(np.asarray(speakers, dtype=str), return_inverse=True, return_counts=True)
    sums = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(sums, of_row, embeddings)
    return names.tolist(), (sums / counts[:, None]).astype(embeddings.dtype)


def check_no_overlap(cohort_speakers: Iterable[str], trial_speakers: Iterable[str]) -> None:
    """Checks that no speaker of the trials is in the cohort, where target scores would raise the statistics.

    Raises:
      ScoringError: a speaker is in both; the message names such speakers.
    """
    if both := sorted(set(cohort_speakers) & set(trial_speakers)):
        shown = ", ".join(both[:5]) + (", ..." if len(both) > 5 else "")
        raise ScoringError(f"{len(both)} speaker(s) of the trials are also in the cohort ({shown}): use other speakers")
