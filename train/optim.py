"""The optimizer: optax chains with PyTorch's meaning of each argument."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ecapa_jax.train.config import OptimConfig

Params: TypeAlias = PyTree[Float[Array, "..."]]


def optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Gradients to updates at learning rate 1; the step multiplies by the rate.

    Weight decay of `sgd` and `adam` is added to the gradient, before momentum, that of `adamw` to the update, as
    `torch.optim` does each. Clipping comes first, on the plain gradient.

    `muon` orthogonalises the momentum of each kernel (Jordan et al. 2024, `optax.contrib.muon`) and scales it to the
    size that AdamW's updates have (Liu et al. 2025, arXiv 2502.16982), so that both take the same learning rate.

    Reference: `torch.optim.SGD`, `torch.optim.Adam`, `torch.optim.AdamW`, `torch.nn.utils.clip_grad_norm_`.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "muon":
        return optax.chain(*parts, _muon(config))
    decay = optax.add_decayed_weights(config.weight_decay, _mask(config)) if config.weight_decay else optax.identity()
    if config.name == "sgd":
        parts += [
            decay,
            optax.trace(config.momentum, nesterov=config.nesterov) if config.momentum else optax.identity(),
        ]
    else:
        adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
        parts += [adam, decay] if config.name == "adamw" else [decay, adam]
    return optax.chain(*parts, optax.scale(-1.0))


def _muon(config: OptimConfig) -> optax.GradientTransformation:
    """Muon for the network's kernels as matrices [width x input, output], AdamW for everything else."""
    import optax.contrib

    return optax.contrib.muon(
        1.0,
        beta=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        weight_decay_mask=_mask(config),
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        adam_weight_decay=config.weight_decay if config.decay == "all" else 0.0,
        muon_weight_dimension_numbers=_kernel_axes,
        consistent_rms=0.2,
    )


def _kernel_axes(params: Params) -> Any:
    """Which axes of each kernel are the input's and which the output's; None for what is not a kernel."""

    def axes(path: Any, leaf: Array) -> Any:
        is_kernel = getattr(path[0], "key", None) == "network" and leaf.ndim > 1
        output = leaf.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(output)), output) if is_kernel else None

    return jax.tree_util.tree_map_with_path(axes, params)


def apply_updates(params: Params, updates: Params, rate: Float[Array, ""]) -> Params:
    """The weights after a step of the given learning rate."""
    return jax.tree.map(lambda leaf, update: leaf + rate.astype(leaf.dtype) * update, params, updates)


def moved_average(average: Params, params: Params, decay: float, step: Int[Array, ""]) -> Params:
    """The moving average of weights after a step.

    Its memory grows to `decay` as (1 + step) / (10 + step), so that it forgets the first weights soon.

    Reference: `tf.train.ExponentialMovingAverage` with `num_updates`.
    """
    memory = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(
        lambda mean, leaf: memory.astype(leaf.dtype) * mean + (1 - memory).astype(leaf.dtype) * leaf, average, params
    )


def _mask(config: OptimConfig) -> Any:
    if config.decay == "all":
        return None
    return lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
