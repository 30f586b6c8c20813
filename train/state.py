"""The state of a run: one pytree of plain dicts, all that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ecapa_jax import functional
from ecapa_jax.features.fbank import AnyArray
from ecapa_jax.functional import Variables
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.optim import optimizer

State = dict[str, Any]
"""
step: steps done.
params: `network`, as a model's variables have it, and `centres` [speakers, sub-centres, embedding] of the loss.
batch_stats, constants: as a model's variables have them.
optimizer: optax's state.
average: moving averages of the network's `params` and `batch_stats`; empty without `optim.ema`.
sums: of metrics since the last line of the metrics file.
bad_step: the first step whose loss or gradient was not finite, from which on nothing moves; -1.
"""

SUMS = ("steps", "loss", "accuracy", "gradient_norm", "teacher_cosine")


def init_state(
    config: TrainConfig,
    n_speakers: int,
    variables: Variables | None = None,
    centres: Float[AnyArray, "speakers sub_centres embedding"] | None = None,
) -> State:
    """The state before the first step.

    Args:
      config: the run.
      n_speakers: classes, speed-perturbed speakers included.
      variables: of a network to start from; None draws them.
      centres: of a classifier to start from; None draws them (Xavier-uniform, as `speakerlab` does).
    """
    network_key = jax.random.split(jax.random.key(config.run.seed))[0]
    variables = functional.init(config.model, network_key) if variables is None else variables
    centres = drawn_centres(config, n_speakers) if centres is None else centres
    params = jax.tree.map(jnp.array, {"network": variables["params"], "centres": centres})
    batch_stats = jax.tree.map(jnp.array, variables["batch_stats"])
    average = {"params": params["network"], "batch_stats": batch_stats} if config.optim.ema else {}
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "batch_stats": batch_stats,
        "constants": jax.tree.map(jnp.array, variables["constants"]),
        "optimizer": optimizer(config.optim).init(params),
        "average": jax.tree.map(jnp.copy, average),
        "sums": zero_sums(),
        "bad_step": jnp.full((), -1, jnp.int32),
    }


def drawn_centres(config: TrainConfig, n_speakers: int) -> Float[Array, "speakers sub_centres embedding"]:
    """The classifier that a run's seed stands for."""
    key = jax.random.split(jax.random.key(config.run.seed))[1]
    return init_centres(key, n_speakers, config.loss.sub_centres, config.model.ecapa.embedding_dim)


def init_centres(
    key: PRNGKeyArray, n_speakers: int, sub_centres: int, embedding_dim: int
) -> Float[Array, "speakers sub_centres embedding"]:
    """Xavier-uniform classifier weights, over all centres as one matrix."""
    bound = (6 / (n_speakers * sub_centres + embedding_dim)) ** 0.5
    return jax.random.uniform(key, (n_speakers, sub_centres, embedding_dim), minval=-bound, maxval=bound)


def zero_sums() -> dict[str, Float[Array, ""]]:
    """Empty sums of metrics."""
    return {name: jnp.zeros((), jnp.float32) for name in SUMS}


def model_variables(state: State) -> Variables:
    """The variables to score with: the moving average where there is one."""
    source = state["average"] or {"params": state["params"]["network"], "batch_stats": state["batch_stats"]}
    return {"params": source["params"], "batch_stats": source["batch_stats"], "constants": state["constants"]}
