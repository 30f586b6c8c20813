"""Whitening: embeddings whose components have equal variance over many recordings, and are uncorrelated.

A cosine counts each direction of the embedding space by its variance. In a small network a few directions hold most of
it, and they say what is easiest to hear: a man or a woman, a child or an adult, which microphone. Whitening gives the
other directions their say. It needs recordings of many people, but no labels.

Reference: Kessy et al. 2018, "Optimal Whitening and Decorrelation" (ZCA); the covariance is shrunk as
`sklearn.covariance.ShrunkCovariance` shrinks it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Float64

from ecapa_jax.errors import ScoringError

FEWEST = 100
"""Embeddings from which a covariance is estimated at least."""


@dataclasses.dataclass(frozen=True)
class Whitening:
    """The map `(embedding - mean) @ matrix`.

    Attributes:
      mean: of the embeddings that it was estimated from.
      matrix: symmetric; the mapped embeddings have the mean variance that the embeddings had.
    """

    mean: Float64[np.ndarray, " embedding"]
    matrix: Float64[np.ndarray, "embedding embedding"]

    def __call__(self, embeddings: Float[np.ndarray, "n embedding"]) -> Float64[np.ndarray, "n embedding"]:
        """Whitens embeddings."""
        return (np.asarray(embeddings, np.float64) - self.mean) @ self.matrix


def estimate_whitening(embeddings: Float[np.ndarray, "n embedding"], shrinkage: float = 0.5) -> Whitening:
    """Estimates a whitening from the embeddings of many recordings.

    Args:
      embeddings: of any length; each is divided by its own, as a cosine does.
      shrinkage: from 0 to 1: share of the covariance that is replaced by its mean variance in all directions. 0 whitens
        wholly, and amplifies noise in the directions that hardly vary; 1 only subtracts the mean.

    Raises:
      ScoringError: there are too few embeddings, some are zero or not finite, or the shrinkage is out of range; or the
        embeddings do not vary in some direction and the shrinkage is 0.
    """
    if not 0 <= shrinkage <= 1:
        raise ScoringError(f"a shrinkage of {shrinkage} is out of range: give a number from 0 to 1")
    if len(embeddings) < FEWEST:
        raise ScoringError(f"{len(embeddings)} embeddings are too few to whiten by: give at least {FEWEST} recordings")
    rows = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ScoringError("some embeddings are zero or not finite: leave their recordings out")
    rows = rows * (lengths.mean() / lengths)
    mean = rows.mean(axis=0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    variance = float(np.trace(covariance)) / len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * variance * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(shrunk)
    if values[0] <= 1e-12 * values[-1]:
        raise ScoringError("the embeddings do not vary in every direction: give more recordings, or a larger shrinkage")
    return Whitening(mean, (vectors * np.sqrt(variance / values)) @ vectors.T)
