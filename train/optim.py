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

    Reference: `torch.optim.SGD`, `torch.optim.Adam`, `torch.optim.AdamW`, `torch.nn.utils.clip_grad_norm_`.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
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
