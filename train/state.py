"""The state of a run: one pytree of plain dicts, which is what a checkpoint holds."""

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
step: number of steps done.
params: `network`, the params of the model, and `centres` [speakers, sub-centres, embedding], the classifier.
batch_stats, constants: those of the variables of the model.
optimizer: state of the Optax optimizer.
average: moving averages of `params` and `batch_stats` of the network; empty without `optim.ema`.
sums: sums of metrics since the last line of the metrics file.
bad_step: the first step whose loss or gradient was not finite, after which nothing changes any more; -1 if none.
"""

SUMS = ("steps", "loss", "accuracy", "gradient_norm", "teacher_cosine")


def init_state(
    config: TrainConfig,
    n_speakers: int,
    variables: Variables | None = None,
    centres: Float[AnyArray, "speakers sub_centres embedding"] | None = None,
) -> State:
    """Makes the state before the first step.

    Args:
      config: configuration of the run.
      n_speakers: number of classes, including speed-perturbed speakers.
      variables: variables of a network to start from; None draws them.
      centres: classifier to start from; None draws it (Xavier-uniform, as `speakerlab` does).
    """
    network_key = jax.random.split(jax.random.key(config.run.seed))[0]
    variables = functional.init(config.model, network_key) if variables is None else variables
    centres = draw_centres(config, n_speakers) if centres is None else centres
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


def draw_centres(config: TrainConfig, n_speakers: int) -> Float[Array, "speakers sub_centres embedding"]:
    """Draws the classifier from the seed of the run."""
    key = jax.random.split(jax.random.key(config.run.seed))[1]
    return init_centres(key, n_speakers, config.loss.sub_centres, config.model.ecapa.embedding_dim)


def init_centres(
    key: PRNGKeyArray, n_speakers: int, sub_centres: int, embedding_dim: int
) -> Float[Array, "speakers sub_centres embedding"]:
    """Draws Xavier-uniform classifier weights, with all centres as one matrix."""
    bound = (6 / (n_speakers * sub_centres + embedding_dim)) ** 0.5
    return jax.random.uniform(key, (n_speakers, sub_centres, embedding_dim), minval=-bound, maxval=bound)


def zero_sums() -> dict[str, Float[Array, ""]]:
    """Returns sums of metrics that are all zero."""
    return {name: jnp.zeros((), jnp.float32) for name in SUMS}


def model_variables(state: State) -> Variables:
    """Returns the variables to score with: the moving average if there is one, otherwise the weights."""
    source = state["average"] or {"params": state["params"]["network"], "batch_stats": state["batch_stats"]}
    return {"params": source["params"], "batch_stats": source["batch_stats"], "constants": state["constants"]}
