"""Moments: what a chunk adds to the statistics of its utterance, and how the moments of all chunks are pooled.

Moments are weight, mean and variance of some frames. Moments of chunks merge exactly, in any order. The weight in a
plain mean is the number of frames; the weight in an attentive mean is the sum of the exponentials of the logits. The
logarithm of the weight is stored, so that nothing overflows; the online softmax merges in the same way.

Letters: B chunks, T frames, C channels, M channels of the MFA.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ecapa_jax.config import EcapaConfig
from ecapa_jax.masks import mask_lengths, masked_mean
from ecapa_jax.nn.ecapa import AttentiveStatisticsPooling, EcapaTdnn
from ecapa_jax.nn.layers import Frames, Mask, Stat, floored_std, std_of_frames
from ecapa_jax.nn.poolings import MultiHeadPooling, PosteriorPooling, StatisticsPooling

Count = Int[Array, " batch"]
Features = Float[Array, "batch time mels"]
GateMeans = tuple[Float[Array, "batch _"], ...]
"""For each of the first blocks, the mean over the whole utterance from which the gate of the block is computed."""


class Moments(NamedTuple):
    """Natural logarithm of the weight, mean and biased variance of some frames, each [B, channels]."""

    log_weight: Stat
    mean: Stat
    variance: Stat


def frame_moments(x: Frames, keep: Mask) -> Moments:
    """Returns the moments of the frames in `keep`, where each frame has weight one."""
    mean = masked_mean(x, keep)
    variance = masked_mean(jnp.square(x - mean[:, None]), keep)
    return Moments(_log_count(keep, mean), mean, variance)


def mean_moments(x: Frames, keep: Mask) -> Moments:
    """Returns the moments of the frames in `keep` without their variance, which is set to zero."""
    mean = masked_mean(x, keep)
    return Moments(_log_count(keep, mean), mean, jnp.zeros_like(mean))


def _log_count(keep: Mask, like: Stat) -> Stat:
    return jnp.broadcast_to(jnp.log(mask_lengths(keep).astype(like.dtype))[:, None], like.shape)


def attention_moments(logits: Float[Array, "batch time columns"], x: Frames, keep: Mask) -> Moments:
    """Returns the moments of the frames in `keep` with weights exp(logit); one column of logits serves all channels."""
    keep_each = keep[..., None]
    logits = jnp.where(keep_each, jnp.broadcast_to(logits, x.shape), jnp.finfo(logits.dtype).min)
    x = jnp.where(keep_each, x, 0)
    peak = jnp.max(logits, axis=1, keepdims=True)
    weights = jnp.where(keep_each, jnp.exp(logits - peak), 0)
    total = jnp.sum(weights, axis=1)
    mean = _weighted_sum(weights, x) / total
    variance = _weighted_sum(weights, jnp.square(x - mean[:, None])) / total
    return Moments(peak[:, 0] + jnp.log(total), mean, variance)


def _weighted_sum(weights: Frames, x: Frames) -> Stat:
    return jnp.einsum("btc,btc->bc", weights, x, precision=lax.Precision.HIGHEST)


def mfa_frames(model: EcapaTdnn, features: Features, seen: Mask, gate_means: GateMeans) -> Frames:
    """Computes the output of the MFA from features, where `gate_means` gate the blocks."""
    outputs, _ = _block_outputs(model, features, seen, gate_means)
    return model.mfa(jnp.concatenate(outputs, axis=-1), seen)


def hidden_frames(model: EcapaTdnn, features: Features, seen: Mask, gate_means: GateMeans) -> Frames:
    """Computes the frames that block `len(gate_means)` squeezes, [B, T, C]."""
    _, x = _block_outputs(model, features, seen, gate_means)
    return getattr(model, f"block_{len(gate_means)}").frames(x, seen)


def _block_outputs(
    model: EcapaTdnn, features: Features, seen: Mask, gate_means: GateMeans
) -> tuple[list[Frames], Frames]:
    """Returns the outputs of the first blocks, one for each mean, and the input of the next block."""
    x = model.stem(features, seen)
    outputs = []
    for index, mean in enumerate(gate_means):
        block = getattr(model, f"block_{index}")
        output = block.combine(x, block.frames(x, seen), block.se(mean), seen)
        outputs.append(output)
        x = x + output if model.config.block_input == "sum" else output
    return outputs, x


def pooling_moments(model: EcapaTdnn, x: Frames, keep: Mask, context: Moments | None, count: Count) -> Moments:
    """Returns the moments of the output of the MFA under the weights of the attention.

    Args:
      model: a network whose pooling has weights.
      x: [B, T, M], output of the MFA.
      keep: [B, T], mask of the chunk without its halo.
      context: moments of the whole utterance, if the model has a global context.
      count: [B], frames of the whole utterance.

    Returns:
      Moments [B, M]; with several heads and queries [B, Q M], query by query.
    """
    pooling = model.pooling
    if isinstance(pooling, MultiHeadPooling):
        shares = jnp.split(x, pooling.heads, axis=-1)
        parts = [
            attention_moments(getattr(pooling, f"query_{query}_head_{head}").attention(share, keep), share, keep)
            for query in range(pooling.queries)
            for head, share in enumerate(shares)
        ]
        return Moments(*(jnp.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))
    if isinstance(pooling, PosteriorPooling):
        return attention_moments(pooling.attention(x, keep), x, keep)
    assert isinstance(pooling, AttentiveStatisticsPooling)
    statistics = None
    if context is not None:
        std = std_of_frames(model.config.context_std, context.variance, count)
        statistics = (context.mean.astype(x.dtype), std.astype(x.dtype))
    return attention_moments(pooling.attention(x, keep, statistics), x, keep)


def pool_moments(model: EcapaTdnn, moments: Moments, count: Count) -> Float[Array, "batch pool_moments"]:
    """Computes the output of the pooling from the moments of all frames of an utterance."""
    config, pooling = model.config, model.pooling
    if isinstance(pooling, StatisticsPooling):
        return pooling.select(moments.mean, std_of_frames(config.context_std, moments.variance, count))
    if isinstance(pooling, PosteriorPooling):
        return _add_prior(pooling, moments)
    std = floored_std(config.pooled_std, moments.variance)
    groups = pooling.queries * pooling.heads if isinstance(pooling, MultiHeadPooling) else 1
    parts = zip(jnp.split(moments.mean, groups, axis=-1), jnp.split(std, groups, axis=-1), strict=True)
    return jnp.concatenate([part for pair in parts for part in pair], axis=-1)


def _add_prior(pooling: PosteriorPooling, moments: Moments) -> Stat:
    """Adds the prior, which acts as an additional frame, to the mean."""
    prior, value = pooling.prior_log_precision[...], pooling.prior_mean[...]
    share = jax.nn.sigmoid(moments.log_weight - prior)
    return value + share * (moments.mean - value)


def needs_context(config: EcapaConfig) -> bool:
    """Whether the model needs mean and standard deviation of the output of the MFA, for an attention or without one."""
    return config.global_context or config.pooling in ("mean", "std", "mean_std")
