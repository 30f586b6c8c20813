"""Cosine scores, pure and jit-able."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ecapa_jax.modes import allow_rank_promotion

AnyArray: TypeAlias = Array | np.ndarray
Function = TypeVar("Function", bound=Callable[..., Any])

EPSILON = 1e-6
"""Lower limit of the divisor, the product of two lengths, as in `torch.nn.CosineSimilarity(eps=1e-6)`."""


def typed_jit(function: Function, **options: Any) -> Function:
    """Applies `jax.jit` and keeps the signature for type checkers, which otherwise see arguments of any type."""
    return cast("Function", jax.jit(allow_rank_promotion(function), **options))


@typed_jit
def cosine(a: Float[AnyArray, "*batch embedding"], b: Float[AnyArray, "*batch embedding"]) -> Float[Array, "*batch"]:
    """Returns the cosine of corresponding embeddings, in [-1, 1] up to rounding; 0 if an embedding is zero."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    dot = jnp.sum(a * b, axis=-1)
    lengths = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return dot / jnp.maximum(lengths, EPSILON)


@typed_jit
def score_matrix(a: Float[AnyArray, "n embedding"], b: Float[AnyArray, "m embedding"]) -> Float[Array, "n m"]:
    """Returns the cosine of every embedding of `a` with every embedding of `b`: [n, D], [m, D] -> [n, m]."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    dot = jnp.dot(a, b.T, precision=lax.Precision.HIGHEST)
    lengths = jnp.linalg.norm(a, axis=-1)[:, None] * jnp.linalg.norm(b, axis=-1)
    return dot / jnp.maximum(lengths, EPSILON)


@typed_jit
def unit(embeddings: Float[AnyArray, "*batch embedding"]) -> Float[Array, "*batch embedding"]:
    """Scales embeddings to length 1, so that their dot products are cosines; zero stays zero."""
    embeddings = jnp.asarray(embeddings)
    length = jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
    return embeddings / jnp.where(length > 0, length, 1)
