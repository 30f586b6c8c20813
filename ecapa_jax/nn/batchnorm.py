"""Batch normalisation over real frames, with PyTorch's running statistics."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float


class BatchNorm(nnx.Module):
    """Batch normalisation of each channel over the real frames of a batch.

    In training it normalises with the biased variance of the batch and stores the unbiased one, as PyTorch does (Flax
    stores the biased one); padding counts for neither. Under jit over a sharded batch the statistics are those of the
    whole batch.

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
        """Normalises; with `train` also moves the running statistics by `momentum` towards the batch's."""
        mean, var = self._batch_statistics(x, mask) if train else (self.mean[...], self.var[...])
        return (x - mean) * (lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]

    def _batch_statistics(
        self, x: Float[Array, "batch time channels"], mask: Bool[Array, "batch time"]
    ) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
        keep = mask[..., None]
        count = jnp.maximum(self._everywhere(jnp.sum(mask)), 1).astype(x.dtype)
        mean = self._everywhere(jnp.sum(jnp.where(keep, x, 0), axis=(0, 1))) / count
        var = self._everywhere(jnp.sum(jnp.where(keep, jnp.square(x - mean), 0), axis=(0, 1))) / count
        unbiased = var * count / jnp.maximum(count - 1, 1)
        self.mean[...] += self.momentum * (lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += self.momentum * (lax.stop_gradient(unbiased) - self.var[...])
        return mean, var

    def _everywhere(self, part: Array) -> Array:
        return lax.psum(part, self.axes) if self.axes else part
