"""Exact search for the embeddings that are most similar to a query. All but `score_blocks` is pure jnp and jit-able."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring.cosine import AnyArray, score_matrix, typed_jit, unit

BLOCK_SCORES = 2**26
"""Most scores held in memory at once (256 MiB in float32), but at least those of one query."""


@functools.partial(typed_jit, static_argnames="k")
def search(
    queries: Float[AnyArray, "q embedding"],
    enrolled: Float[AnyArray, "n embedding"],
    k: int,
    count: Int[AnyArray, ""] | int | None = None,
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """Finds the k highest cosines of each query and the rows that have them. The search is exact.

    Each block of queries reads every row of `enrolled` once and multiplies it once. The rows must therefore have
    length 1: apply `unit` when you store them.

    Args:
      queries: [q, D], vectors of any length.
      enrolled: [n, D], rows of length 1. Rows from `count` on are padding: with spare rows, enrolling a speaker does
        not compile again.
      k: number of rows to return.
      count: number of real rows of `enrolled`; None means all.

    Returns:
      Cosines [q, k] in descending order, and rows of `enrolled` [q, k]. Among equal cosines the lower row comes first.
      If there are fewer than k real rows, the remaining cosines are -inf.

    Raises:
      ScoringError: k is not between 1 and n.
    """
    size = len(enrolled)
    if not 1 <= k <= size:
        raise ScoringError(f"k is {k}; with {size} enrolled embeddings it must be from 1 to {size}")
    directions, enrolled = unit(queries), jnp.asarray(enrolled)
    real = None if count is None else jnp.arange(size) < count

    def some(block: Float[Array, "b embedding"]) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
        scores = jnp.dot(block, enrolled.T, precision=lax.Precision.HIGHEST)
        best, at = lax.top_k(scores if real is None else jnp.where(real, scores, -jnp.inf), k)
        return best, at

    rows = max(1, BLOCK_SCORES // size)
    if len(directions) <= rows:
        return some(directions)
    top = lax.map(lambda query: jax.tree.map(lambda x: x[0], some(query[None])), directions, batch_size=rows)
    return top[0], top[1]


def score_blocks(
    a: Float[AnyArray, "n embedding"], b: Float[AnyArray, "m embedding"], *, block_scores: int = BLOCK_SCORES
) -> Iterator[tuple[slice, Float[np.ndarray, "rows m"]]]:
    """Yields the score matrix of `a` and `b` in blocks of rows, for a matrix that does not fit in memory.

    Args:
      a, b: [n, D], [m, D].
      block_scores: most scores held at once, but at least one row.

    Yields:
      A slice of rows of `a`, and the cosines of these rows with all of `b`.
    """
    rows = max(1, block_scores // max(1, len(b)))
    right = jnp.asarray(b)
    for start in range(0, len(a), rows):
        part = slice(start, min(start + rows, len(a)))
        yield part, np.asarray(_score_matrix(jnp.asarray(a[part]), right))


_score_matrix = jax.jit(score_matrix)
