"""Lengths, masks and buckets. All of it is integer arithmetic, so that rounding never adds or drops a frame."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BUCKET_STEPS = 4
"""Number of length buckets per doubling; with four, padding wastes at most a fifth of the work."""


def length_mask(lengths: Int[Array, " batch"], size: int) -> Bool[Array, "batch {size}"]:
    """Returns a mask that is True at each position before the length of its utterance."""
    return jnp.arange(size) < lengths[:, None]


def mask_lengths(mask: Bool[Array, "batch time"]) -> Int[Array, " batch"]:
    """Returns the number of real frames of each utterance."""
    return jnp.sum(mask, axis=1, dtype=jnp.int32)


def masked_mean(
    x: Float[Array, "batch time channels"], mask: Bool[Array, "batch time"]
) -> Float[Array, "batch channels"]:
    """Returns the mean over real frames, or zero for an utterance without real frames.

    Padding is masked by selection, not multiplied by zero, so that a NaN in the padding can't spread.
    """
    count = jnp.maximum(mask_lengths(mask), 1).astype(x.dtype)
    return jnp.sum(jnp.where(mask[..., None], x, 0), axis=1) / count[:, None]


def bucket_length(n_samples: int, minimum: int) -> int:
    """Returns the padded length of an utterance: the smallest bucket that holds it.

    The first bucket is `minimum`; four more follow for each doubling, without end. Recordings of up to L samples
    therefore have at most 4 log2(L / minimum) + 2 different padded lengths.

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
