"""Scores a list of trials as the publisher of the model does: in jnp, in blocks, with one compilation for any list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Float64, Int, Int64

from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import ScoringError
from ecapa_jax.modes import in_library_modes
from ecapa_jax.scoring.calibration import calibrate, quality
from ecapa_jax.scoring.cosine import unit
from ecapa_jax.scoring.normalisation import cohort_statistics, s_norm
from ecapa_jax.scoring.scorer import MAPS, Scorer

BLOCK_TRIALS = 1 << 16


@in_library_modes
def speaker_vectors(
    encoder: SpeakerEncoder, embeddings: Float32[np.ndarray, "files views embedding"]
) -> Float[Array, "files parts embedding"]:
    """Returns the vectors with which recordings are scored: minus the mean embedding if it is used, at unit length.

    The score of two recordings is the mean of the dot products of their parts. If a model scores windows too, their
    mean is the second part, because the mean of all products is the product of the means.
    """
    mean = encoder.scorer.embedding_mean if encoder.scorer.scoring.subtract_mean else None
    return _parts(embeddings if mean is None else embeddings - mean)


@jax.jit
def _parts(
    embeddings: Float[np.ndarray | Array, "files views embedding"],
) -> Float[Array, "files parts embedding"]:
    vectors = unit(embeddings)
    if vectors.shape[1] == 1:
        return vectors
    return jnp.stack([vectors[:, 0], vectors[:, 1:].mean(axis=1)], axis=1)


@in_library_modes
def average_enrolments(
    vectors: Float[Array, "files parts embedding"], rows: Sequence[Sequence[int]]
) -> Float[Array, "models parts embedding"]:
    """Averages the vectors of each enrolment model and scales the first part to unit length again.

    Args:
      vectors: vectors of the recordings, at unit length.
      rows: rows of `vectors` of each model.
    """
    flat = np.concatenate([np.asarray(group, np.int64) for group in rows])
    model = np.repeat(np.arange(len(rows)), [len(group) for group in rows])
    return _means(vectors, flat, model, np.bincount(model).astype(np.float32))


@jax.jit
def _means(
    vectors: Float[Array, "files parts embedding"],
    flat: Int[np.ndarray | Array, " utterances"],
    model: Int[np.ndarray | Array, " utterances"],
    sizes: Float[np.ndarray | Array, " models"],
) -> Float[Array, "models parts embedding"]:
    sums = jax.ops.segment_sum(vectors[flat], model, num_segments=len(sizes))
    means = sums / sizes[:, None, None]
    return means.at[:, 0].set(unit(means[:, 0]))


@in_library_modes
def score_pairs(
    enrol: Float[Array, "models parts embedding"],
    test: Float[Array, "files parts embedding"],
    pairs: Int64[np.ndarray, "2 trials"],
) -> Float64[np.ndarray, " trials"]:
    """Scores trials in [-1, 1], one block at a time, so that memory does not grow with the list.

    Args:
      enrol, test: vectors of both sides.
      pairs: rows of `enrol` and of `test` for each trial.
    """
    n = pairs.shape[1]
    scores = np.empty(n, np.float64)
    for start in range(0, n, BLOCK_TRIALS):
        block = pairs[:, start : start + BLOCK_TRIALS]
        size = block.shape[1]
        padded = np.pad(block, ((0, 0), (0, BLOCK_TRIALS - size)))
        scores[start : start + size] = np.asarray(_block(enrol, test, padded))[:size]
    return scores


@jax.jit
def _block(
    enrol: Float[Array, "models parts embedding"],
    test: Float[Array, "files parts embedding"],
    pairs: Int[Array, "2 block"],
) -> Float[Array, " block"]:
    products = jnp.einsum("npd,npd->n", enrol[pairs[0]], test[pairs[1]], precision=lax.Precision.HIGHEST)
    return jnp.clip(products / enrol.shape[1], -1.0, 1.0)


@in_library_modes
def normalise(
    scores: Float64[np.ndarray, " trials"],
    enrol: Float[Array, "models parts embedding"],
    test: Float[Array, "files parts embedding"],
    pairs: Int64[np.ndarray, "2 trials"],
    cohort: Float[Array, "cohort embedding"],
    top_n: int | None,
) -> Float64[np.ndarray, " trials"]:
    """Scores in standard deviations above a cohort's, both sides alike: S-norm, and with `top_n` AS-norm.

    Args:
      scores: cosines.
      enrol, test, pairs: as for `score_pairs`.
      cohort: vectors of the same kind, of speakers that are in no trial.
      top_n: as for `cohort_statistics`.

    Raises:
      ScoringError: the cohort is too small, or the model does not score whole recordings only.
    """
    if enrol.shape[1] > 1:
        raise ScoringError("normalisation needs scores of whole recordings: choose another scoring for this model")
    sides = [cohort_statistics(side[:, 0], cohort, top_n) for side in (enrol, test)]
    return np.asarray(s_norm(scores, sides[0][pairs[0]], sides[1][pairs[1]]), np.float64)


def map_cosines(encoder: SpeakerEncoder, cosines: Float64[np.ndarray, " trials"]) -> Float64[np.ndarray, " trials"]:
    """Maps cosines to the scale of the publisher of the model."""
    return MAPS[encoder.scorer.scoring.score_map][0](cosines)  # type: ignore[arg-type, return-value] # arithmetic: arrays too


@in_library_modes
def finish_scores(
    scorer: Scorer,
    cosines: Float64[np.ndarray, " trials"],
    enrol: Float[Array, "models parts embedding"],
    test: Float[Array, "files parts embedding"],
    pairs: Int64[np.ndarray, "2 trials"],
    sides: Mapping[str, Float64[np.ndarray, "2 trials"]],
) -> Float64[np.ndarray, " trials"]:
    """The scores of a model that normalises or calibrates, as `Scorer.score` gives them one by one.

    Args:
      scorer: scorer of the model.
      cosines, enrol, test, pairs: as for `normalise`.
      sides: quality measures of both sides of each trial, by name.
    """
    scoring, scores = scorer.scoring, cosines
    if scoring.normalisation == "s_norm" and scorer.cohort is not None:
        cohort = unit(scorer.centre(scorer.cohort.embeddings))
        scores = normalise(scores, enrol, test, pairs, cohort, scoring.top_n)
    if scoring.calibration is None:
        return scores
    columns = quality_columns(scoring.calibration.measures, sides)
    return np.asarray(calibrate(scoring.calibration, scores.astype(np.float32), columns), np.float64)


@in_library_modes
def quality_columns(
    measures: Sequence[str], sides: Mapping[str, Float64[np.ndarray, "2 trials"]]
) -> Float[np.ndarray, "trials columns"]:
    """Returns the columns that a calibration with these measures needs."""
    columns = [np.asarray(quality(*sides[name].astype(np.float32))) for name in measures]
    return np.concatenate([np.empty((len(next(iter(sides.values()))[0]), 0), np.float32), *columns], axis=1)
