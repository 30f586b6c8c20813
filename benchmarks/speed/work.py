"""Counts the network's operations, and measures the speed of matrix products on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable

from ecapa_jax.config import EcapaConfig

SIDE = 2048
REPEATS = 15


def network_flops(config: EcapaConfig, n_frames: int) -> int:
    """Returns the operations of all products for one utterance; a multiplication and an addition count as two.

    The count is the minimum: mean and deviation in the attention's input are multiplied once per utterance, as in this
    library, while PyTorch's modules multiply them for each frame. Norms, activations and statistics are not counted.

    Args:
      config: a network with hierarchical Res2 and attentive pooling, as in 3D-Speaker and SpeechBrain.
      n_frames: the number of frames of the utterance.
    """
    stem, *blocks = config.channels
    per_frame = config.n_mels * config.kernel_sizes[0] * stem
    once = 0
    inputs = config.channels[:-1]
    for before, channels, kernel in zip(inputs, blocks, config.kernel_sizes[1:], strict=True):
        chunk = channels // config.res2_scale
        per_frame += before * channels + (config.res2_scale - 1) * kernel * chunk**2 + channels**2
        per_frame += before * channels if before != channels else 0
        once += 2 * channels * config.se_channels
    per_frame += sum(blocks) * config.mfa_kernel_size * config.mfa_channels
    per_frame += 2 * config.mfa_channels * config.attention_channels
    once += 2 * config.mfa_channels * config.attention_channels if config.global_context else 0
    once += config.pooled_channels * config.embedding_dim
    return 2 * (n_frames * per_frame + once)


def dot_peaks() -> dict[str, dict[str, float]]:
    """Returns the best GFLOP/s of square products of side `SIDE`, by dtype and library."""
    return {
        "float32": {"jax": _peak(_jax_product("float32")), "torch": _peak(_torch_product("float32"))},
        "bfloat16": {"jax": _peak(_jax_product("bfloat16")), "torch": _peak(_torch_product("bfloat16"))},
    }


def _peak(product: Callable[[], object]) -> float:
    product()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        product()
        times.append(time.perf_counter() - begin)
    return 2e-9 * SIDE**3 / min(times)


def _jax_product(dtype: str) -> Callable[[], object]:
    """Returns a product with a float32 result, because CPUs have instructions for bfloat16 inputs and float32 sums."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (SIDE, SIDE)).astype(dtype)
    dot = jax.jit(lambda a: jnp.dot(a, a, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32))
    return lambda: jax.block_until_ready(dot(a))


def _torch_product(dtype: str) -> Callable[[], object]:
    import torch

    a = torch.randn(SIDE, SIDE, dtype=getattr(torch, dtype))
    return lambda: a @ a
