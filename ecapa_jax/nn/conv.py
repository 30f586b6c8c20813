"""Convolution over time, padded at each utterance's true end.

Letters: B batch, T frames, C channels, K kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from ecapa_jax.masks import mask_lengths


def contract(x: Float[Array, "*rows channels"], kernel: Float[Array, "channels out"]) -> Float[Array, "*rows out"]:
    """`x @ kernel` in the kernel's dtype, accumulated in at least float32."""
    return _low_dot(x, kernel) if kernel.dtype.itemsize < 4 else _dot(x.astype(kernel.dtype), kernel)


def _dot(x: Float[Array, "*rows channels"], kernel: Float[Array, "channels out"]) -> Float[Array, "*rows out"]:
    accumulated = jnp.promote_types(kernel.dtype, jnp.float32)
    return jnp.dot(x, kernel, precision=_precision(kernel), preferred_element_type=accumulated)


@jax.custom_vjp
def _low_dot(x: Float[Array, "*rows channels"], kernel: Float[Array, "channels out"]) -> Float[Array, "*rows out"]:
    """`_dot` whose gradients are products of low precision as well: a float32 cotangent would make them float32's."""
    return _dot(x.astype(kernel.dtype), kernel)


def _low_dot_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    low = x.astype(kernel.dtype)
    return _dot(low, kernel), (low, kernel, jnp.zeros((), x.dtype))


def _low_dot_backward(kept: tuple[Any, ...], cotangent: Array) -> tuple[Array, Array]:
    x, kernel, like = kept
    rows = cotangent.astype(kernel.dtype).reshape(-1, cotangent.shape[-1])
    frames = x.reshape(-1, x.shape[-1])
    of_x = lax.platform_dependent(rows, kernel, cpu=_times_transposed_on_cpu, default=lambda y, k: _dot(y, k.T))
    of_kernel = lax.platform_dependent(frames, rows, cpu=_transposed_times_on_cpu, default=lambda x, y: _dot(x.T, y))
    return of_x.reshape(x.shape).astype(like.dtype), of_kernel.astype(kernel.dtype)


_low_dot.defvjp(_low_dot_forward, _low_dot_backward)

# XLA's CPU dot of low precision halves its speed when a transposition is folded into it; slicing prevents that.


def _times_transposed_on_cpu(rows: Float[Array, "rows out"], kernel: Float[Array, "channels out"]) -> Array:
    half = -(-kernel.shape[1] // 2)
    return _dot(rows[:, :half], kernel.T[:half]) + _dot(rows[:, half:], kernel.T[half:])


def _transposed_times_on_cpu(frames: Float[Array, "rows channels"], rows: Float[Array, "rows out"]) -> Array:
    size = -(-frames.shape[0] // 4)
    starts = range(0, frames.shape[0], size)
    return functools.reduce(jnp.add, [_dot(frames[at : at + size].T, rows[at : at + size]) for at in starts])


def _precision(kernel: Array) -> lax.Precision:
    """Full precision for float32 and wider, on every backend; lower dtypes were chosen for their speed."""
    return lax.Precision.DEFAULT if kernel.dtype.itemsize < 4 else lax.Precision.HIGHEST


def pad_time(
    x: Float[Array, "batch time channels"], mask: Bool[Array, "batch time"], width: int, mode: str
) -> Float[Array, "batch padded channels"]:
    """Pads `width` frames before each utterance and after its true end: zeros, or its own frames mirrored.

    Reference: `torch.nn.functional.pad(mode="reflect")` on the utterance alone: the edge frame is not repeated.
    """
    padded = jnp.pad(jnp.where(mask[..., None], x, 0), ((0, 0), (width, width), (0, 0)))
    if mode == "zeros":
        return padded
    lengths = mask_lengths(mask)
    before = x[:, 1 : width + 1][:, ::-1]
    rows = jnp.maximum(lengths[:, None] - 2 - jnp.arange(width), 0)
    after = jnp.take_along_axis(x, rows[..., None], axis=1)
    # Written at each utterance's end; a chain of `where` over the whole tensor took three times as long to compile.
    place = jax.vmap(lambda row, tail, start: lax.dynamic_update_slice(row, tail, (start, jnp.zeros_like(start))))
    return place(padded, after, lengths + width).at[:, : before.shape[1]].set(before)


class Conv1d(nnx.Module):
    """A "same" convolution over time.

    Attributes:
      kernel: [K, C_in / groups, C_out].
      bias: [C_out].

    Parity: `torch.nn.Conv1d` (kernel = weight transposed 2, 1, 0) after padding the utterance alone.
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
        # PyTorch's default initialisation, so that a recipe written for it starts from the same distribution.
        bound = (kernel_size * shape[1]) ** -0.5
        self.kernel = nnx.Param(_drawn(rngs, shape, bound))
        self.bias = nnx.Param(_drawn(rngs, (out_channels,), bound))

    def __call__(
        self, x: Float[Array, "batch time channels"], mask: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time out"]:
        """Convolves each utterance as if it were alone; frames beyond its end are unspecified but finite."""
        kernel = self.kernel[...]
        if kernel.shape[0] == 1 and self.groups == 1:
            return contract(x, kernel[0]) + self.bias[...]
        x = pad_time(x.astype(kernel.dtype), mask, self.dilation * (kernel.shape[0] - 1) // 2, self.padding)
        if kernel.dtype.itemsize < 4 and self.groups == 1:
            # XLA's CPU convolution of low precision runs at the speed of float32, its dot does not.
            y = lax.platform_dependent(x, kernel, cpu=self._unfold, default=self._convolve)
        else:
            y = self._convolve(x, kernel)
        return y + self.bias[...]

    def _convolve(
        self, x: Float[Array, "batch padded channels"], kernel: Float[Array, "taps group out"]
    ) -> Float[Array, "batch time out"]:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1,),
            padding="VALID",
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NHC", "HIO", "NHC"),
            feature_group_count=self.groups,
            precision=_precision(kernel),
            preferred_element_type=jnp.promote_types(kernel.dtype, jnp.float32),
        )

    def _unfold(
        self, x: Float[Array, "batch padded channels"], kernel: Float[Array, "taps channels out"]
    ) -> Float[Array, "batch time out"]:
        """The same as one product: the frames under all taps side by side."""
        taps, _, out = kernel.shape
        time = x.shape[1] - self.dilation * (taps - 1)
        parts = [x[:, tap * self.dilation :][:, :time] for tap in range(taps)]
        return contract(jnp.concatenate(parts, axis=-1), kernel.reshape(-1, out))


def _drawn(rngs: nnx.Rngs | None, shape: tuple[int, ...], bound: float) -> Array:
    """Uniform in [-bound, bound]; zeros where only shapes are wanted, since drawing takes long to trace."""
    return jnp.zeros(shape) if rngs is None else jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
