"""Attentive statistics pooling with channel- and context-dependent attention.

Letters: B batch, T frames, M channels of the MFA.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ecapa_jax.config import EcapaConfig, StdConfig
from ecapa_jax.masks import mask_lengths, masked_mean
from ecapa_jax.nn.blocks import batch_norm, inner_activation
from ecapa_jax.nn.conv import Conv1d, contract

Frames = Float[Array, "batch time channels"]
Mask = Bool[Array, "batch time"]
Stat = Float[Array, "batch channels"]


def floored_std(config: StdConfig, variance: Stat) -> Stat:
    """Square root of a variance that is kept away from zero the family's way."""
    variance = variance + config.epsilon if config.epsilon_mode == "add" else jnp.maximum(variance, config.epsilon)
    return jnp.sqrt(variance if config.maximum is None else jnp.minimum(variance, config.maximum))


def context_statistics(config: StdConfig, x: Frames, mask: Mask) -> tuple[Stat, Stat]:
    """Mean and standard deviation over real frames, each [B, M].

    Reference: the paper's section 3.1 (global context); `speechbrain...AttentiveStatisticsPooling`.
    """
    mean = masked_mean(x, mask)
    if config.form == "central":
        variance = masked_mean(jnp.square(x - mean[:, None]), mask)
    else:
        variance = masked_mean(jnp.square(x), mask) - jnp.square(mean)
    return mean, std_of_frames(config, variance, mask_lengths(mask))


def std_of_frames(config: StdConfig, variance: Stat, count: Int[Array, " batch"]) -> Stat:
    """Standard deviation from the biased variance of `count` frames."""
    if config.unbiased:
        frames = count.astype(variance.dtype)[:, None]
        variance = variance * frames / (frames - 1)
    return floored_std(config, variance)


def plain_statistics(config: EcapaConfig, x: Frames, mask: Mask) -> Float[Array, "batch pooled"]:
    """Mean, standard deviation or both over real frames, without attention.

    Reference: the x-vector's statistics pooling (Snyder et al. 2018); WeSpeaker's TAP, TSDP and TSTP.
    """
    return plain_parts(config, *context_statistics(config.context_std, x, mask))


def plain_parts(config: EcapaConfig, mean: Stat, std: Stat) -> Float[Array, "batch pooled"]:
    """What a plain pooling keeps of mean and standard deviation."""
    parts = {"mean": (mean,), "std": (std,), "mean_std": (mean, std)}
    return jnp.concatenate(parts[config.pooling], axis=-1)


def weighted_statistics(config: StdConfig, x: Frames, weights: Frames) -> tuple[Stat, Stat]:
    """Mean and standard deviation under weights that sum to one over time; x must be finite everywhere.

    Reference: the paper's equations 2 and 3.
    """

    def total(a: Frames, b: Frames) -> Stat:
        return jnp.einsum("btc,btc->bc", a, b, precision=lax.Precision.HIGHEST)

    mean = total(weights, x)
    if config.form == "central":
        variance = total(weights, jnp.square(x - mean[:, None]))
    else:
        variance = total(weights, jnp.square(x)) - jnp.square(mean)
    return mean, floored_std(config, variance)


class AttentiveStatisticsPooling(nnx.Module):
    """Mean and standard deviation over time under an attention of each channel's own.

    Attributes:
      hidden: 1x1 convolution of [x, mean, std] (or x alone) to the bottleneck.
      logits: 1x1 convolution of the bottleneck to a weight per frame and channel.

    Reference: the paper's section 3.1.
    """

    def __init__(self, config: EcapaConfig, *, rngs: nnx.Rngs | None):
        channels, bottleneck = config.mfa_channels, config.attention_channels
        self.config = config
        self.hidden = Conv1d(channels * (3 if config.global_context else 1), bottleneck, rngs=rngs)
        self.norm = batch_norm(config, bottleneck) if "bn" in config.attention_hidden else None
        self.logits = Conv1d(bottleneck, channels, rngs=rngs)

    def attention(self, x: Frames, mask: Mask, context: tuple[Stat, Stat] | None, *, train: bool = False) -> Frames:
        """Logits of each frame and channel, [B, T, M].

        Mean and standard deviation are constant over time: their two thirds of the first product are taken once per
        utterance, not once per frame.
        """
        kernel, channels = self.hidden.kernel[...][0], x.shape[-1]
        hidden = contract(x, kernel[:channels]) + self.hidden.bias[...]
        if context is not None:
            hidden = hidden + contract(jnp.concatenate(context, axis=-1), kernel[channels:])[:, None]
        if "relu" in self.config.attention_hidden:
            hidden = inner_activation(self.config)(hidden)
        if self.norm is not None:
            hidden = self.norm(hidden, mask, train=train)
        if "tanh" in self.config.attention_hidden:
            hidden = jnp.tanh(hidden)
        return self.logits(hidden, mask)

    def pool(self, x: Frames, logits: Frames, mask: Mask) -> Float[Array, "batch pooled"]:
        """Softmax over each utterance's real frames, then [mean, std], [B, 2 M]."""
        keep = mask[..., None]
        # A finite floor, not -inf: an utterance without a frame must not make NaN gradients for its batch mates.
        weights = jax.nn.softmax(jnp.where(keep, logits, jnp.finfo(logits.dtype).min), axis=1)
        mean, std = weighted_statistics(self.config.pooled_std, jnp.where(keep, x, 0), weights)
        return jnp.concatenate([mean, std], axis=-1)
