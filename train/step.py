"""One optimizer step: waveforms and labels in, the next state out. Pure, for one jit with a donated state.

Letters: B batch, S samples, K speakers.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from ecapa_jax import functional
from ecapa_jax.config import EcapaConfig
from ecapa_jax.features.fbank import fbank
from ecapa_jax.train.augment import Banks, augment, spec_augment
from ecapa_jax.train.config import DataConfig, RunConfig, StartConfig, TrainConfig
from ecapa_jax.train.losses import cosines, cross_entropy, margin_logits
from ecapa_jax.train.optim import apply_updates, moved_average, optimizer
from ecapa_jax.train.schedules import Clock, learning_rate, margin
from ecapa_jax.train.state import SUMS, State

Batch = dict[str, Array]
"""
waveforms: [B, S] int16, or float in [-1, 1].
lengths: [B] int32, samples that are speech; beyond them the waveform is padding.
labels: [B] int32, class of each row.
noise: [B, S] int16, where a folder of noises is named; noise_kind: [B] int32, which of them it is.
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is static in a step; made by `of`."""

    config: TrainConfig
    clock: Clock

    @classmethod
    def of(cls, config: TrainConfig, clock: Clock) -> Plan:
        """Without what no step depends on: runs that differ in their files or reports only share one compilation."""
        run = RunConfig(seed=config.run.seed)
        data = DataConfig(batch_size=config.data.batch_size)
        return cls(dataclasses.replace(config, data=data, run=run, start=StartConfig()), clock)


@functools.cache
def compiled_step(plan: Plan) -> Any:
    """`step(banks, state, batch) -> state`, jitted; the given state is used up."""
    return jax.jit(functools.partial(train_step, plan), donate_argnums=1)


def train_step(plan: Plan, banks: Banks, state: State, batch: Batch) -> State:
    """One step: augmentation, features, loss, gradients, update.

    A loss or gradient that is not finite changes nothing but `bad_step`, from which on every step is without effect:
    the loop finds it at its next look, with the weights as they were before.

    Args:
      plan: configuration and clock; static.
      banks: room impulse responses for the augmentation.
      state: see `State`.
      batch: see `Batch`.
    """
    gradients, batch_stats, measured = _gradients(plan, banks, state, batch)
    return _updated(plan, state, gradients, batch_stats, measured)


def gradients_of(plan: Plan, banks: Banks, state: State, batch: Batch) -> PyTree:
    """The gradients that a step would apply, as `params` of the state: for comparison and inspection."""
    return _gradients(plan, banks, state, batch)[0]


def _augmented(config: TrainConfig, banks: Banks, step: Array, batch: Batch) -> tuple[Float[Array, "B S"], Array]:
    key = jax.random.fold_in(jax.random.key(config.run.seed), step)
    waveform_key, features_key = jax.random.split(key)
    waveforms = batch["waveforms"]
    if jnp.issubdtype(waveforms.dtype, jnp.integer):
        waveforms = waveforms.astype(jnp.float32) / 32768
    rate = config.model.fbank.sample_rate
    return augment(config.augment, rate, banks, waveform_key, waveforms, batch), features_key


def _loss(
    config: TrainConfig, key: Array, constants: Any, move: Array, params: PyTree, batch_stats: PyTree, part: Batch
) -> tuple[Float[Array, ""], tuple[PyTree, Array]]:
    """Mean loss of a micro-batch, with the running statistics it leaves and its share of right answers."""
    variables = {"constants": constants}
    features, mask = _features(config, variables, part)
    features = spec_augment(config.augment, key, part["rows"], features, mask)
    apply = _apply_rematerialized if config.step.rematerialize else _apply
    network = lower_precision(params["network"], config.step.dtype)
    embeddings, batch_stats = apply(config.model.ecapa, network, batch_stats, features, mask)
    cosine = cosines(embeddings, params["centres"])
    logits = margin_logits(config.loss, cosine, part["labels"], move)
    loss = jnp.mean(cross_entropy(logits, part["labels"]))
    accuracy = jnp.mean(jnp.argmax(cosine, axis=1) == part["labels"])
    return loss, (batch_stats, accuracy)


def _features(config: TrainConfig, variables: Any, part: Batch) -> tuple[Array, Array]:
    features, mask = fbank(config.model.fbank, part["waveforms"], part["lengths"])
    return lax.stop_gradient(features), mask


def _apply(
    config: EcapaConfig, params: PyTree, batch_stats: PyTree, features: Array, mask: Array
) -> tuple[Array, PyTree]:
    return functional.apply(config, {"params": params, "batch_stats": batch_stats}, features, mask, train=True)


_apply_rematerialized = jax.checkpoint(_apply, static_argnums=0)


def lower_precision(params: PyTree, dtype: str) -> PyTree:
    """Kernels in the compute dtype; biases and norms stay as they are."""
    if dtype == "float32":
        return params
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


def _gradients(plan: Plan, banks: Banks, state: State, batch: Batch) -> tuple[PyTree, PyTree, Array]:
    """Mean gradients over the micro-batches, running statistics after the last, and mean (loss, accuracy)."""
    config = plan.config
    waveforms, key = _augmented(config, banks, state["step"], batch)
    part = {"waveforms": waveforms, "lengths": batch["lengths"], "labels": batch["labels"]}
    part["rows"] = jnp.arange(waveforms.shape[0])
    move = margin(config.loss, plan.clock, state["step"])
    loss_of = functools.partial(_loss, config, key, state["constants"], move)
    differentiate = jax.value_and_grad(loss_of, has_aux=True)
    n_parts = config.step.micro_batches

    def one(carry: Any, rows: Batch) -> tuple[Any, None]:
        gradients, batch_stats, measured = carry
        (loss, (batch_stats, accuracy)), more = differentiate(state["params"], batch_stats, rows)
        gradients = jax.tree.map(lambda total, new: total + new / n_parts, gradients, more)
        return (gradients, batch_stats, measured + jnp.stack([loss, accuracy]) / n_parts), None

    if n_parts == 1:
        (loss, (batch_stats, accuracy)), gradients = differentiate(state["params"], state["batch_stats"], part)
        return gradients, batch_stats, jnp.stack([loss, accuracy])
    rows = jax.tree.map(lambda leaf: leaf.reshape(n_parts, -1, *leaf.shape[1:]), part)
    zeros = jax.tree.map(jnp.zeros_like, state["params"])
    carry, _ = lax.scan(one, (zeros, state["batch_stats"], jnp.zeros(2)), rows)
    return carry


def _updated(plan: Plan, state: State, gradients: PyTree, batch_stats: PyTree, measured: Array) -> State:
    config, norm = plan.config, optax.tree.norm(gradients)
    updates, opt_state = optimizer(config.optim).update(gradients, state["optimizer"], state["params"])
    rate = learning_rate(config.optim, plan.clock, state["step"])
    params = apply_updates(state["params"], updates, rate)
    average = state["average"]
    if config.optim.ema:
        live = {"params": params["network"], "batch_stats": batch_stats}
        average = moved_average(average, live, config.optim.ema, state["step"])
    moved = {"params": params, "batch_stats": batch_stats, "optimizer": opt_state, "average": average}
    new = jnp.stack([jnp.ones(()), measured[0], measured[1], norm])
    moved["sums"] = {name: state["sums"][name] + value for name, value in zip(SUMS, new, strict=True)}
    good = jnp.isfinite(measured[0]) & jnp.isfinite(norm) & (state["bad_step"] < 0)
    kept = {name: state[name] for name in moved}
    chosen = jax.tree.map(lambda after, before: jnp.where(good, after, before), moved, kept)
    bad_step = jnp.where(good | (state["bad_step"] >= 0), state["bad_step"], state["step"])
    return {**state, **chosen, "step": state["step"] + 1, "bad_step": bad_step}
