"""Poolings that are not in the paper: without attention, with several heads and queries, of a Gaussian posterior.

Letters: B batch, T frames, M channels of the MFA, H heads, Q queries.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ecapa_jax.config import EcapaConfig
from ecapa_jax.nn.layers import Conv1d, Frames, Mask, Stat, batch_norm, context_statistics, weighted_statistics

SHAPES = {"multi_head": (1, 2, False), "multi_query": (2, 8, True)}
"""Queries, heads, and whether each channel has its own weight. WeSpeaker fixes these values for its ECAPA-TDNN."""


def softmax_over_time(logits: Frames, mask: Mask) -> Frames:
    """Returns weights that sum to one over the real frames of each utterance."""
    return jax.nn.softmax(jnp.where(mask[..., None], logits, jnp.finfo(logits.dtype).min), axis=1)


class StatisticsPooling(nnx.Module):
    """Mean, standard deviation or both over real frames, without attention and without weights.

    Reference: the x-vector's statistics pooling (Snyder et al. 2018); WeSpeaker's TAP, TSDP and TSTP.
    """

    def __init__(self, config: EcapaConfig, *, rngs: nnx.Rngs | None):
        self.config = config

    def __call__(self, x: Frames, mask: Mask, *, train: bool = False) -> Float[Array, "batch pooled"]:
        """[B, T, M] -> [B, M] or [B, 2 M]."""
        return self.select(*context_statistics(self.config.context_std, x, mask))

    def select(self, mean: Stat, std: Stat) -> Float[Array, "batch pooled"]:
        """Concatenates what this pooling uses: mean, standard deviation, or both."""
        parts = {"mean": (mean,), "std": (std,), "mean_std": (mean, std)}
        return jnp.concatenate(parts[self.config.pooling], axis=-1)


class HeadPooling(nnx.Module):
    """Attentive statistics of one head, which sees its share of the channels.

    Attributes:
      hidden: 1x1 convolution of the share to the bottleneck, before tanh.
      logits: 1x1 convolution of the bottleneck to a logit per frame, or per frame and channel.
    """

    def __init__(self, config: EcapaConfig, share: int, *, per_channel: bool, rngs: nnx.Rngs | None):
        self.config = config
        self.hidden = Conv1d(share, config.attention_channels, rngs=rngs)
        self.logits = Conv1d(config.attention_channels, share if per_channel else 1, rngs=rngs)

    def __call__(self, x: Frames, mask: Mask) -> Float[Array, "batch pooled"]:
        """[B, T, M / H] -> mean and standard deviation, [B, 2 M / H]."""
        weights = softmax_over_time(self.attention(x, mask), mask)
        kept = jnp.where(mask[..., None], x, 0)
        return jnp.concatenate(
            weighted_statistics(self.config.pooled_std, kept, jnp.broadcast_to(weights, x.shape)), -1
        )

    def attention(self, x: Frames, mask: Mask) -> Float[Array, "batch time weights"]:
        """Returns the logits of each frame, [B, T, 1], or of each frame and channel, [B, T, M / H]."""
        return self.logits(jnp.tanh(self.hidden(x, mask)), mask)


class MultiHeadPooling(nnx.Module):
    """Attentive statistics of several heads, each of which sees its share of the channels, for each query.

    Reference: India et al. 2019 (arXiv 1906.09890), Zhao et al. 2021 (arXiv 2110.05042); WeSpeaker's MHASTP, MQMHASTP.
    """

    def __init__(self, config: EcapaConfig, *, rngs: nnx.Rngs | None):
        self.queries, self.heads, per_channel = SHAPES[config.pooling]
        share = config.mfa_channels // self.heads
        for query in range(self.queries):
            for head in range(self.heads):
                pooling = HeadPooling(config, share, per_channel=per_channel, rngs=rngs)
                setattr(self, f"query_{query}_head_{head}", pooling)

    def __call__(self, x: Frames, mask: Mask, *, train: bool = False) -> Float[Array, "batch pooled"]:
        """[B, T, M] -> [B, 2 M Q]: for each query, the mean and standard deviation of each head."""
        shares = jnp.split(x, self.heads, axis=-1)
        parts = [
            getattr(self, f"query_{query}_head_{head}")(share, mask)
            for query in range(self.queries)
            for head, share in enumerate(shares)
        ]
        return jnp.concatenate(parts, axis=-1)


class PosteriorPooling(nnx.Module):
    """The posterior mean of a Gaussian, where each frame has its own precision.

    Attributes:
      prior_mean, prior_log_precision: [1, M], an additional frame that every utterance has.
      hidden, norm, precision: layers that compute precisions from frames, by a bottleneck with ReLU and batch norm.

    Reference: Lee et al. 2021 (xi-vector, arXiv 2108.05679), equations 6 to 8; WeSpeaker's XI.
    """

    def __init__(self, config: EcapaConfig, *, rngs: nnx.Rngs | None):
        channels, bottleneck = config.mfa_channels, config.attention_channels
        self.prior_mean = nnx.Param(jnp.zeros((1, channels)))
        self.prior_log_precision = nnx.Param(jnp.zeros((1, channels)))
        self.hidden = Conv1d(channels, bottleneck, rngs=rngs)
        self.norm = batch_norm(config, bottleneck)
        self.precision = Conv1d(bottleneck, channels, rngs=rngs)

    def __call__(self, x: Frames, mask: Mask, *, train: bool = False) -> Float[Array, "batch channels"]:
        """[B, T, M] -> [B, M]."""
        logits = self.attention(x, mask, train=train)
        prior = jnp.broadcast_to(self.prior_log_precision[...], (x.shape[0], 1, x.shape[2]))
        values = jnp.broadcast_to(self.prior_mean[...], prior.shape)
        seen = jnp.concatenate([jnp.ones((x.shape[0], 1), bool), mask], axis=1)
        weights = softmax_over_time(jnp.concatenate([prior, logits], axis=1), seen)
        frames = jnp.concatenate([values, jnp.where(mask[..., None], x, 0)], axis=1)
        return jnp.sum(weights * frames, axis=1)

    def attention(self, x: Frames, mask: Mask, *, train: bool = False) -> Frames:
        """Returns the logits of each frame and channel, which are log precisions, [B, T, M]."""
        hidden = self.norm(jax.nn.relu(self.hidden(x, mask)), mask, train=train)
        precision = jnp.maximum(jax.nn.softplus(self.precision(hidden, mask)), 1e-30)
        return jnp.clip(2 * jnp.log(precision), -15, 15)
