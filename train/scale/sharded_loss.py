"""Margin softmax over speakers that are sharded over devices, so that no device holds the whole classifier.

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
    """Returns the loss of each row, and whether its nearest speaker is the right one; call it inside `jax.shard_map`.

    Args:
      config: configuration of the loss.
      embeddings, labels: [B, D], [B]; equal on all devices of the axis.
      centres: [K, S, D], the part of the classifier on this device; all parts together are the speakers, then padding.
      margin: margin of this step.
      n_speakers: number of speakers without padding.
      axis: axis of the mesh over which the speakers are split.

    Returns:
      [B] and [B], equal on all devices of the axis. The loss is `losses.cross_entropy` of `losses.margin_logits` over
      all speakers.
    """
    size = centres.shape[0]
    first = lax.axis_index(axis) * size
    own = jnp.arange(size)
    real = first + own < n_speakers
    cosine = cosines(embeddings, centres)
    target = (labels - first)[:, None] == own
    nearest = _find_nearest_others(config, cosine, target | ~real, n_speakers, first, axis) if config.top_k else None
    logits = margin_logits(config, cosine, labels - first, margin, nearest)
    # Rows of padding are zeros, whose cosines are finite, so their gradients are zero and never NaN times zero.
    logits = jnp.where(real, logits, -jnp.inf)
    losses = _log_sum_exp(logits, axis) - lax.psum(jnp.sum(jnp.where(target, logits, 0), axis=1), axis)
    return losses, _find_nearest_speaker(
        jnp.where(real, lax.stop_gradient(cosine), -jnp.inf), first, axis
    ) == _mark_as_equal(labels, axis)


def _log_sum_exp(logits: Float[Array, "batch speakers"], axis: str) -> Rows:
    highest = lax.pmax(lax.stop_gradient(jnp.max(logits, axis=1)), axis)
    return highest + jnp.log(lax.psum(jnp.sum(jnp.exp(logits - highest[:, None]), axis=1), axis))


def _find_nearest_others(
    config: LossConfig,
    cosine: Float[Array, "batch speakers"],
    left_out: Bool[Array, "batch speakers"],
    n_speakers: int,
    first: Int[Array, ""],
    axis: str,
) -> Int[Array, "batch top_k"]:
    """Finds the nearest other speakers over all devices, as columns on this one; other devices' lie out of range."""
    values, columns = nearest_others(cosine, left_out, config.top_k)
    every = lax.all_gather(values, axis, axis=1, tiled=True)
    speakers = lax.all_gather(columns + first, axis, axis=1, tiled=True)
    # Devices are in the order of their speakers, so that the first of equal speakers wins, as on one device.
    _, chosen = lax.top_k(every, min(config.top_k, n_speakers - 1))
    return jnp.take_along_axis(speakers, chosen, axis=1) - first


def _find_nearest_speaker(
    cosine: Float[Array, "batch speakers"], first: Int[Array, ""], axis: str
) -> Int[Array, " batch"]:
    """Finds the first speaker with the highest cosine."""
    highest = jnp.max(cosine, axis=1)
    own = jnp.where(highest == lax.pmax(highest, axis), jnp.argmax(cosine, axis=1) + first, jnp.iinfo(jnp.int32).max)
    return lax.pmin(own, axis)


def _mark_as_equal(labels: Int[Array, " batch"], axis: str) -> Int[Array, " batch"]:
    """Returns labels, which are equal on all devices, as values that JAX knows to be equal."""
    return lax.pmax(labels, axis)
