"""Margin softmax over speakers that are split over devices: no device ever sees the whole classifier.

Letters: B rows, D embedding, K speakers on this device, S sub-centres.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ecapa_jax.train.config import LossConfig
from ecapa_jax.train.losses import cosines, margin_logits, nearest_others

Rows = Float[Array, " batch"]


def sharded_margin_softmax(
    config: LossConfig,
    embeddings: Float[Array, "batch embedding"],
    centres: Float[Array, "speakers sub_centres embedding"],
    labels: Int[Array, " batch"],
    margin: Float[Array, ""],
    n_speakers: int,
    axis: str,
) -> tuple[Rows, Bool[Array, " batch"]]:
    """Loss of each row, and whether its nearest speaker is the right one; inside `jax.shard_map`.

    Args:
      config: the loss.
      embeddings, labels: [B, D], [B]; the same on all devices of the axis.
      centres: [K, S, D] this device's part of the classifier; the parts are all speakers, then rows of padding.
      margin: of this step.
      n_speakers: without the padding.
      axis: of the mesh, over which the speakers are split.

    Returns:
      [B] and [B], the same on all devices of the axis; as `losses.cross_entropy` of `losses.margin_logits` of all.
    """
    size = centres.shape[0]
    first = lax.axis_index(axis) * size
    own = jnp.arange(size)
    real = first + own < n_speakers
    cosine = cosines(embeddings, centres)
    target = (labels - first)[:, None] == own
    nearest = _nearest(config, cosine, target | ~real, n_speakers, first, axis) if config.top_k else None
    logits = margin_logits(config, cosine, labels - first, margin, nearest)
    # The rows of padding are vectors of zeros, whose cosines are finite: no gradient of theirs is NaN times zero.
    logits = jnp.where(real, logits, -jnp.inf)
    losses = _log_sum_exp(logits, axis) - lax.psum(jnp.sum(jnp.where(target, logits, 0), axis=1), axis)
    return losses, _nearest_speaker(jnp.where(real, lax.stop_gradient(cosine), -jnp.inf), first, axis) == _same(
        labels, axis
    )


def _log_sum_exp(logits: Float[Array, "batch speakers"], axis: str) -> Rows:
    highest = lax.pmax(lax.stop_gradient(jnp.max(logits, axis=1)), axis)
    return highest + jnp.log(lax.psum(jnp.sum(jnp.exp(logits - highest[:, None]), axis=1), axis))


def _nearest(
    config: LossConfig,
    cosine: Float[Array, "batch speakers"],
    left_out: Bool[Array, "batch speakers"],
    n_speakers: int,
    first: Int[Array, ""],
    axis: str,
) -> Int[Array, "batch top_k"]:
    """The nearest other speakers of all devices, as columns of this one; those of other devices lie outside."""
    values, columns = nearest_others(cosine, left_out, config.top_k)
    every = lax.all_gather(values, axis, axis=1, tiled=True)
    speakers = lax.all_gather(columns + first, axis, axis=1, tiled=True)
    # Devices are in the order of their speakers, so that among equals the first wins here as it does on one device.
    _, chosen = lax.top_k(every, min(config.top_k, n_speakers - 1))
    return jnp.take_along_axis(speakers, chosen, axis=1) - first


def _nearest_speaker(cosine: Float[Array, "batch speakers"], first: Int[Array, ""], axis: str) -> Int[Array, " batch"]:
    """The first speaker of the highest cosine."""
    highest = jnp.max(cosine, axis=1)
    own = jnp.where(highest == lax.pmax(highest, axis), jnp.argmax(cosine, axis=1) + first, jnp.iinfo(jnp.int32).max)
    return lax.pmin(own, axis)


def _same(labels: Int[Array, " batch"], axis: str) -> Int[Array, " batch"]:
    """Labels that are equal on all devices, as values that are known to be."""
    return lax.pmax(labels, axis)
