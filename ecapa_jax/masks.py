"""Lengths, masks and buckets: all integer arithmetic, so that no frame is won or lost to rounding."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BUCKET_STEPS = 4
"""Length buckets per doubling: padding wastes at most a fifth of the work."""


def length_mask(lengths: Int[Array, " batch"], size: int) -> Bool[Array, "batch {size}"]:
    """True at each position before its utterance's length."""
    return jnp.arange(size) < lengths[:, None]


def mask_lengths(mask: Bool[Array, "batch time"]) -> Int[Array, " batch"]:
    """Number of real frames of each utterance."""
    return jnp.sum(mask, axis=1, dtype=jnp.int32)


def masked_mean(
    x: Float[Array, "batch time channels"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch channels"]:
    """Mean over real frames; zero for an utterance without any.

    Padding is selected away, never multiplied by zero, so that a NaN there reaches nothing.
    """
    count = jnp.maximum(mask_lengths(mask), 1).astype(x.dtype)
    return jnp.sum(jnp.where(mask[..., None], x, 0), axis=1) / count[:, None]


def bucket_length(n_samples: int, minimum: int) -> int:
    """The padded length for an utterance: the smallest bucket that holds it.

    Buckets are `minimum` and then four per doubling of it, without end, so that any set of recordings up to L samples
    meets at most 4 log2(L / minimum) + 2 lengths.

    Args:
      n_samples: length of the utterance.
      minimum: smallest bucket, a multiple of 4.
    """
    if n_samples <= minimum:
        return minimum
    doublings = (n_samples - 1) // minimum
    base = minimum << (doublings.bit_length() - 1)
    step = base // BUCKET_STEPS
    return base + step * -(-(n_samples - base) // step)
