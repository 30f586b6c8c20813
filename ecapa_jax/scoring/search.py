"""Exact search: which embeddings of many are most like a query. Pure jnp and jit-able, but for `score_blocks`."""

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
"""Scores held at once (256 MiB in float32), or those of one query where they are more."""


@functools.partial(typed_jit, static_argnames="k")
def search(
    queries: Float[AnyArray, "q embedding"],
    enrolled: Float[AnyArray, "n embedding"],
    k: int,
    count: Int[AnyArray, ""] | int | None = None,
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """The k highest cosines of each query, and whose they are; exact, not an approximate index.

    Every row of `enrolled` is read once for a block of queries, and nothing is computed from it but one product: its
    rows must have length 1 (`unit`, once, when they are stored).

    Args:
      queries: [q, D], of any length.
      enrolled: [n, D], rows of length 1. Rows from `count` on are padding: with room for more, an enrolment does not
        compile anew.
      k: how many to return.
      count: real rows of `enrolled`; None: all.

    Returns:
      Cosines [q, k], falling, and rows of `enrolled` [q, k]; of equal cosines the lower row comes first. Where fewer
      than k rows are real, the cosines left over are -inf.

    Raises:
      ScoringError: k is not between 1 and n.
    """
    size = len(enrolled)
    if not 1 <= k <= size:
        raise ScoringError(f"{k} best of {size} enrolled embeddings are asked for; ask for 1 to {size}")
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
    """The score matrix of `a` and `b` in blocks of rows, for sizes at which the whole does not fit in memory.

    Args:
      a, b: [n, D], [m, D].
      block_scores: scores held at once, at least one row.

    Yields:
      The rows of `a`, and their cosines with all of `b`.
    """
    rows = max(1, block_scores // max(1, len(b)))
    right = jnp.asarray(b)
    for start in range(0, len(a), rows):
        part = slice(start, min(start + rows, len(a)))
        yield part, np.asarray(_score_matrix(jnp.asarray(a[part]), right))


_score_matrix = jax.jit(score_matrix)
