"""Score normalisation with a cohort of other speakers: Z-, T-, S- and AS-norm. Pure jnp and jit-able.

A raw cosine depends on the recording: one with noise scores higher, or lower, with everybody. The cohort says how a
recording scores with speakers that are in no trial; the score is then given in standard deviations above that.

    statistics = cohort_statistics(embeddings, cohort, top_n=300)                # once a recording
    s_norm(scores, statistics[enrolment_rows], statistics[test_rows])            # once a trial

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
"""Scores held at once (64 MiB in float32), or one row of them where a row is longer."""

SMALLEST_STD = 1e-6
"""Smallest standard deviation that is divided by: float32 cosines are no finer."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mean", "std"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class CohortStatistics:
    """How embeddings score with a cohort. Indexing takes the same rows of both: `statistics[rows]`.

    Attributes:
      mean: mean of the (top-N) cohort cosines.
      std: their standard deviation.
    """

    mean: Float[Array, "*batch"]
    std: Float[Array, "*batch"]

    def __getitem__(self, index: Any) -> CohortStatistics:
        """The statistics of some embeddings, or with further axes, as an index of arrays gives them."""
        return CohortStatistics(self.mean[index], self.std[index])


def subtract_mean(
    embeddings: Float[AnyArray, "*batch embedding"], mean: Float[AnyArray, " embedding"]
) -> Float[Array, "*batch embedding"]:
    """Embeddings less the mean embedding of a training set, as WeSpeaker scores them.

    Where it is used, trial and cohort embeddings need it alike.
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
    """Mean and standard deviation of each embedding's cosines with the cohort.

    With `top_n` only its N highest cosines count, so that each recording is compared with the speakers most like it.
    Memory: one block of scores, never all of them. Without `top_n` not even that: mean and variance of all cosines
    follow from the mean and covariance of the cohort's unit vectors.

    Args:
      embeddings: [n, D], of any length.
      cohort: [m, D], one embedding an utterance or (`speaker_means`) a speaker; in none of the trials.
      top_n: number of highest cosines; more than the cohort has means all of it. None: all.
      unbiased: divide the variance by N - 1 (SpeechBrain) and not by N (WeSpeaker).
      block: embeddings scored at once; None: as many as `BLOCK_SCORES` allow. It does not change the result.

    Returns:
      [n] means and standard deviations.

    Raises:
      ScoringError: fewer than two cosines would count.
    """
    size = len(cohort) if top_n is None else min(top_n, len(cohort))
    if size < 2:
        raise ScoringError(
            f"a cohort of {len(cohort)} with top_n={top_n} leaves {size} score(s) a recording; at least 2 are needed"
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
    # A variance below rounding can come out negative.
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
    """(score - mean) / std, with the enrolment's statistics (those of one embedding a score, or broadcastable)."""
    return (jnp.asarray(scores) - enrolment.mean) / jnp.maximum(enrolment.std, SMALLEST_STD)


def t_norm(scores: Float[AnyArray, "*batch"], test: CohortStatistics) -> Float[Array, "*batch"]:
    """(score - mean) / std, with the test recording's statistics."""
    return z_norm(scores, test)


@typed_jit
def s_norm(
    scores: Float[AnyArray, "*batch"], enrolment: CohortStatistics, test: CohortStatistics
) -> Float[Array, "*batch"]:
    """Mean of Z- and T-norm: symmetric in the two recordings.

    With statistics of the top N cosines it is AS-norm. For a score matrix give `enrolment[:, None]` and `test[None]`.
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
    """AS-normalised cosine of corresponding embeddings: cosine, then `s_norm` with top-N statistics of both.

    The defaults are WeSpeaker's (top 300, standard deviation over N). SpeechBrain's adaptive S-norm is
    `top_n=cohort_size, unbiased=True`; its S-norm is `top_n=None, unbiased=True`. For lists in which recordings
    come back, `cohort_statistics` once a recording and `s_norm` cost less.

    Args:
      enrolments, tests: embeddings of the trials.
      cohort: [m, D] embeddings of speakers in no trial.
      top_n: as for `cohort_statistics`, which also raises.

    Returns:
      Scores in standard deviations above the cohort's: not bounded.
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
    """One cohort row a speaker: the mean of the speaker's embeddings at their own lengths, as WeSpeaker's cohort is.

    Args:
      embeddings: [n, D].
      speakers: the speaker of each row.

    Returns:
      Speakers in sorted order, and their means [speakers, D] in the dtype of the embeddings.

    Raises:
      ScoringError: not one speaker a row.
    """
    if len(speakers) != len(embeddings):
        raise ScoringError(f"there are {len(embeddings)} embeddings and {len(speakers)} speakers; give one a row")
    names, of_row, counts = np.unique(np.asarray(speakers, dtype=str), return_inverse=True, return_counts=True)
    sums = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(sums, of_row, embeddings)
    return names.tolist(), (sums / counts[:, None]).astype(embeddings.dtype)


def check_no_overlap(cohort_speakers: Iterable[str], trial_speakers: Iterable[str]) -> None:
    """Makes sure that no speaker of the trials is in the cohort: a target score would be normalised by its own like.

    Raises:
      ScoringError: naming the speakers in both.
    """
    if both := sorted(set(cohort_speakers) & set(trial_speakers)):
        shown = ", ".join(both[:5]) + (", ..." if len(both) > 5 else "")
        raise ScoringError(f"{len(both)} speaker(s) of the trials are in the cohort too ({shown}): use other speakers")
