"""Fast matrix products and convolutions for each kind of processor, with gradients that are as fast.

Nothing here changes the result: `matmul` is `x @ kernel`, and `convolve` is a convolution.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def matmul(x: Float[Array, "*rows channels"], kernel: Float[Array, "channels out"]) -> Float[Array, "*rows out"]:
    """Computes `x @ kernel` in the dtype of the kernel and accumulates in at least float32."""
    return _low_dot(x, kernel) if kernel.dtype.itemsize < 4 else _dot(x.astype(kernel.dtype), kernel)


def _dot(x: Float[Array, "*rows channels"], kernel: Float[Array, "channels out"]) -> Float[Array, "*rows out"]:
    accumulated = jnp.promote_types(kernel.dtype, jnp.float32)
    return jnp.dot(x, kernel, precision=_choose_precision(kernel), preferred_element_type=accumulated)


@jax.custom_vjp
def _low_dot(x: Float[Array, "*rows channels"], kernel: Float[Array, "channels out"]) -> Float[Array, "*rows out"]:
    """`_dot` with gradients in low precision; JAX would compute them in float32, because the cotangent is float32."""
    return _dot(x.astype(kernel.dtype), kernel)


def _low_dot_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    low = x.astype(kernel.dtype)
    return _dot(low, kernel), (low, kernel, jnp.zeros((), x.dtype))


def _low_dot_backward(kept: tuple[Any, ...], cotangent: Array) -> tuple[Array, Array]:
    x, kernel, like = kept
    rows = cotangent.astype(kernel.dtype).reshape(-1, cotangent.shape[-1])
    frames = x.reshape(-1, x.shape[-1])
    gradient_of_x = lax.platform_dependent(
        rows, kernel, cpu=_times_transposed_on_cpu, default=lambda y, k: _dot(y, k.T)
    )
    gradient_of_kernel = lax.platform_dependent(
        frames, rows, cpu=_transposed_times_on_cpu, default=lambda x, y: _dot(x.T, y)
    )
    return gradient_of_x.reshape(x.shape).astype(like.dtype), gradient_of_kernel.astype(kernel.dtype)


_low_dot.defvjp(_low_dot_forward, _low_dot_backward)

# On a CPU, XLA folds a transposition into a low-precision dot, which halves its speed. Slicing prevents the folding.


def _times_transposed_on_cpu(rows: Float[Array, "rows out"], kernel: Float[Array, "channels out"]) -> Array:
    half = -(-kernel.shape[1] // 2)
    return _dot(rows[:, :half], kernel.T[:half]) + _dot(rows[:, half:], kernel.T[half:])


def _transposed_times_on_cpu(frames: Float[Array, "rows channels"], rows: Float[Array, "rows out"]) -> Array:
    size = -(-frames.shape[0] // 4)
    starts = range(0, frames.shape[0], size)
    return functools.reduce(jnp.add, [_dot(frames[at : at + size].T, rows[at : at + size]) for at in starts])


def convolve(
    x: Float[Array, "batch padded channels"], kernel: Float[Array, "taps group out"], *, dilation: int, groups: int
) -> Float[Array, "batch time out"]:
    """Convolves over time without padding, in the dtype of the kernel, and accumulates in at least float32."""
    convolution = functools.partial(_convolve_by_xla, dilation=dilation, groups=groups)
    if kernel.dtype.itemsize < 4 and groups == 1:
        # On a CPU, a low-precision convolution of XLA is no faster than float32, but a low-precision dot is.
        unfolded = functools.partial(_unfold_and_multiply, dilation=dilation)
        return lax.platform_dependent(x, kernel, cpu=unfolded, default=convolution)
    return convolution(x, kernel)


def _convolve_by_xla(
    x: Float[Array, "batch padded channels"], kernel: Float[Array, "taps group out"], *, dilation: int, groups: int
) -> Float[Array, "batch time out"]:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding="VALID",
        rhs_dilation=(dilation,),
        dimension_numbers=("NHC", "HIO", "NHC"),
        feature_group_count=groups,
        precision=_choose_precision(kernel),
        preferred_element_type=jnp.promote_types(kernel.dtype, jnp.float32),
    )


def _unfold_and_multiply(
    x: Float[Array, "batch padded channels"], kernel: Float[Array, "taps channels out"], *, dilation: int
) -> Float[Array, "batch time out"]:
    """Computes the convolution as one product, by concatenating the frames that each tap sees."""
    taps, _, out = kernel.shape
    time = x.shape[1] - dilation * (taps - 1)
    parts = [x[:, tap * dilation :][:, :time] for tap in range(taps)]
    return matmul(jnp.concatenate(parts, axis=-1), kernel.reshape(-1, out))


def _choose_precision(kernel: Array) -> lax.Precision:
    """Returns full precision for float32 and wider on every backend; lower dtypes are used for their speed."""
    return lax.Precision.DEFAULT if kernel.dtype.itemsize < 4 else lax.Precision.HIGHEST
