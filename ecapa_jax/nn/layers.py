"""The layers of the network: convolution, padding, normalisation, statistics. Each is exact in padded batches.

Letters: B batch, T frames, C channels, K kernel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ecapa_jax.config import EcapaConfig, StdConfig
from ecapa_jax.masks import mask_lengths, masked_mean
from ecapa_jax.nn.matmul import convolve, matmul

Frames = Float[Array, "batch time channels"]
Mask = Bool[Array, "batch time"]
Stat = Float[Array, "batch channels"]


class Conv1d(nnx.Module):
    """A "same" convolution over time.

    Attributes:
      kernel: [K, C_in / groups, C_out].
      bias: [C_out].

    Parity: `torch.nn.Conv1d` on the padded utterance; `kernel` is its weight transposed by (2, 1, 0).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        padding: str = "zeros",
        rngs: nnx.Rngs | None,
    ):
        self.dilation, self.groups, self.padding = dilation, groups, padding
        shape = (kernel_size, in_channels // groups, out_channels)
        # Initialise as PyTorch does, so that a recipe written for PyTorch starts from the same distribution.
        bound = (kernel_size * shape[1]) ** -0.5
        self.kernel = nnx.Param(_draw_uniform(rngs, shape, bound))
        self.bias = nnx.Param(_draw_uniform(rngs, (out_channels,), bound))

    def __call__(
        self, x: Float[Array, "batch time channels"], mask: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time out"]:
        """Convolves each utterance as if it were alone; frames beyond its end are unspecified, but finite."""
        kernel = self.kernel[...]
        if kernel.shape[0] == 1 and self.groups == 1:
            return matmul(x, kernel[0]) + self.bias[...]
        x = pad_time(x.astype(kernel.dtype), mask, self.dilation * (kernel.shape[0] - 1) // 2, self.padding)
        return convolve(x, kernel, dilation=self.dilation, groups=self.groups) + self.bias[...]


def pad_time(
    x: Float[Array, "batch time channels"], mask: Bool[Array, "batch time"], width: int, mode: str
) -> Float[Array, "batch padded_time channels"]:
    """Pads `width` frames before each utterance and after its true end, with zeros or with mirrored frames.

    Reference: `torch.nn.functional.pad(mode="reflect")` on the utterance alone, which does not repeat the edge frame.
    """
    padded = jnp.pad(jnp.where(mask[..., None], x, 0), ((0, 0), (width, width), (0, 0)))
    if mode == "zeros":
        return padded
    lengths = mask_lengths(mask)  # reflect
    before = x[:, 1 : width + 1][:, ::-1]
    rows = jnp.maximum(lengths[:, None] - 2 - jnp.arange(width), 0)
    after = jnp.take_along_axis(x, rows[..., None], axis=1)
    # Write only at the end of each utterance: a chain of `where` over the whole tensor compiles three times slower.
    place = jax.vmap(lambda row, tail, start: lax.dynamic_update_slice(row, tail, (start, jnp.zeros_like(start))))
    return place(padded, after, lengths + width).at[:, : before.shape[1]].set(before)


def _draw_uniform(rngs: nnx.Rngs | None, shape: tuple[int, ...], bound: float) -> Array:
    """Draws uniformly from [-bound, bound]; without `rngs` returns zeros, because only the shape is wanted then."""
    return jnp.zeros(shape) if rngs is None else jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)


class BatchNorm(nnx.Module):
    """Batch normalisation of each channel over the real frames of a batch.

    In training, it normalises with the biased variance of the batch and stores the unbiased variance, as PyTorch does
    (Flax stores the biased variance). Padding does not count. Under jit over a sharded batch the statistics are those
    of the whole batch.

    Attributes:
      scale, bias: [C].
      mean, var: [C] running statistics.
      axes: names of mesh axes, inside `jax.shard_map`, over which the batch is spread.

    Parity: `torch.nn.BatchNorm1d` on the concatenated real frames.
    """

    def __init__(self, channels: int, *, epsilon: float = 1e-5, momentum: float = 0.1):
        self.epsilon, self.momentum = epsilon, momentum
        self.axes: tuple[str, ...] = ()
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))

    def __call__(
        self, x: Float[Array, "batch time channels"], mask: Bool[Array, "batch time"], *, train: bool = False
    ) -> Float[Array, "batch time channels"]:
        """Normalises; if `train`, also moves the running statistics towards those of the batch by `momentum`."""
        mean, var = self._batch_statistics(x, mask) if train else (self.mean[...], self.var[...])
        return (x - mean) * (lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]

    def _batch_statistics(
        self, x: Float[Array, "batch time channels"], mask: Bool[Array, "batch time"]
    ) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
        keep = mask[..., None]
        count = jnp.maximum(self._sum_over_devices(jnp.sum(mask)), 1).astype(x.dtype)
        mean = self._sum_over_devices(jnp.sum(jnp.where(keep, x, 0), axis=(0, 1))) / count
        var = self._sum_over_devices(jnp.sum(jnp.where(keep, jnp.square(x - mean), 0), axis=(0, 1))) / count
        unbiased = var * count / jnp.maximum(count - 1, 1)
        self.mean[...] += self.momentum * (lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += self.momentum * (lax.stop_gradient(unbiased) - self.var[...])
        return mean, var

    def _sum_over_devices(self, part: Array) -> Array:
        return lax.psum(part, self.axes) if self.axes else part


def batch_norm(config: EcapaConfig, channels: int) -> BatchNorm:
    """Makes a batch normalisation with the constants of the config."""
    return BatchNorm(channels, epsilon=config.norm_epsilon, momentum=config.norm_momentum)


def context_statistics(config: StdConfig, x: Frames, mask: Mask) -> tuple[Stat, Stat]:
    """Returns mean and standard deviation over real frames, each [B, M].

    Reference: the paper's section 3.1 (global context); `speechbrain...AttentiveStatisticsPooling`.
    """
    mean = masked_mean(x, mask)
    if config.form == "central":
        variance = masked_mean(jnp.square(x - mean[:, None]), mask)
    else:
        variance = masked_mean(jnp.square(x), mask) - jnp.square(mean)
    return mean, std_of_frames(config, variance, mask_lengths(mask))


def weighted_statistics(config: StdConfig, x: Frames, weights: Frames) -> tuple[Stat, Stat]:
    """Returns the weighted mean and standard deviation; weights sum to one over time, x is finite everywhere.

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


def std_of_frames(config: StdConfig, variance: Stat, count: Int[Array, " batch"]) -> Stat:
    """Computes the standard deviation from the biased variance of `count` frames."""
    if config.unbiased:
        frames = count.astype(variance.dtype)[:, None]
        variance = variance * frames / (frames - 1)
    return floored_std(config, variance)


def floored_std(config: StdConfig, variance: Stat) -> Stat:
    """Returns the square root of a variance after keeping the variance away from zero, as the config says."""
    variance = variance + config.epsilon if config.epsilon_mode == "add" else jnp.maximum(variance, config.epsilon)
    return jnp.sqrt(variance if config.maximum is None else jnp.minimum(variance, config.maximum))
