"""The optimizer: chains of Optax in which every argument means what it means in PyTorch."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ecapa_jax.train.config import OptimConfig

Params: TypeAlias = PyTree[Float[Array, "..."]]


def optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Makes the optimizer for learning rate 1; the step multiplies its updates by the learning rate.

    As in `torch.optim`, `sgd` and `adam` add weight decay to the gradient, before momentum, and `adamw` adds it to the
    update. Clipping comes first, on the plain gradient.

    `muon` orthogonalises the momentum of each kernel (Jordan et al. 2024, `optax.contrib.muon`) and scales it to the
    size that AdamW's updates have (Liu et al. 2025, arXiv 2502.16982), so that both take the same learning rate.

    Reference: `torch.optim.SGD`, `torch.optim.Adam`, `torch.optim.AdamW`, `torch.nn.utils.clip_grad_norm_`.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "muon":
        return optax.chain(*parts, _muon(config))
    decay = (
        optax.add_decayed_weights(config.weight_decay, _make_decay_mask(config))
        if config.weight_decay
        else optax.identity()
    )
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
    """Makes Muon for the kernels of the network, as matrices [width x input, output], and AdamW for the rest."""
    import optax.contrib

    return optax.contrib.muon(
        1.0,
        beta=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        weight_decay_mask=_make_decay_mask(config),
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        adam_weight_decay=config.weight_decay if config.decay == "all" else 0.0,
        muon_weight_dimension_numbers=_kernel_axes,
        consistent_rms=0.2,
    )


def _kernel_axes(params: Params) -> Any:
    """Returns which axes of each kernel are input and which are output; None for arrays that are not kernels."""

    def axes(path: Any, leaf: Array) -> Any:
        is_kernel = getattr(path[0], "key", None) == "network" and leaf.ndim > 1
        output = leaf.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(output)), output) if is_kernel else None

    return jax.tree_util.tree_map_with_path(axes, params)


def apply_updates(params: Params, updates: Params, rate: Float[Array, ""]) -> Params:
    """Returns the weights after a step with the given learning rate."""
    return jax.tree.map(lambda leaf, update: leaf + rate.astype(leaf.dtype) * update, params, updates)


def move_average(average: Params, params: Params, decay: float, step: Int[Array, ""]) -> Params:
    """Returns the moving average of weights after a step.

    The decay rises to `decay` as (1 + step) / (10 + step), so that the average forgets the first weights soon.

    Reference: `tf.train.ExponentialMovingAverage` with `num_updates`.
    """
    memory = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(
        lambda mean, leaf: memory.astype(leaf.dtype) * mean + (1 - memory).astype(leaf.dtype) * leaf, average, params
    )


def _make_decay_mask(config: OptimConfig) -> Any:
    if config.decay == "all":
        return None
    return lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
