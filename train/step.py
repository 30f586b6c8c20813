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
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from ecapa_jax import functional
from ecapa_jax.config import EcapaConfig
from ecapa_jax.features.fbank import fbank
from ecapa_jax.train.augment import Banks, augment, spec_augment
from ecapa_jax.train.config import DataConfig, RunConfig, StartConfig, TrainConfig
from ecapa_jax.train.losses import cosines, cross_entropy, margin_logits
from ecapa_jax.train.optim import apply_updates, moved_average, optimizer
from ecapa_jax.train.scale.mesh import (
    BATCH,
    DATA,
    EVERYWHERE,
    MODEL,
    SPEAKERS,
    local_rows,
    mesh_size,
    state_shardings,
)
from ecapa_jax.train.scale.sharded_loss import sharded_margin_softmax
from ecapa_jax.train.schedules import Clock, learning_rate, margin
from ecapa_jax.train.state import SUMS, State

Batch = dict[str, Array]
"""
waveforms: [B, S] int16, or float in [-1, 1].
lengths: [B] int32, samples that are speech; beyond them the waveform is padding. With `data.short = "repeat"` there is
  none: every length is S, and the program is made for that.
labels: [B] int32, class of each row.
noise: [B, S] int16, where a folder of noises is named; noise_kind: [B] int32, which of them it is.
On a mesh the rows stand in the order of `mesh.batch_rows`.
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is static in a step; made by `of`.

    Attributes:
      config: the run.
      clock: its durations.
      mesh: the devices; None is one.
      n_speakers: classes; on a mesh, whose classifier may have rows of padding.
    """

    config: TrainConfig
    clock: Clock
    mesh: Mesh | None = None
    n_speakers: int = 0

    @classmethod
    def of(cls, config: TrainConfig, clock: Clock, mesh: Mesh | None = None, n_speakers: int = 0) -> Plan:
        """Without what no step depends on: runs that differ in their files or reports only share one compilation."""
        run = RunConfig(seed=config.run.seed)
        data = DataConfig(batch_size=config.data.batch_size, short=config.data.short)
        return cls(dataclasses.replace(config, data=data, run=run, start=StartConfig()), clock, mesh, n_speakers)


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
    after = _updated(plan, state, gradients, batch_stats, measured)
    return after if plan.mesh is None else lax.with_sharding_constraint(after, state_shardings(plan.mesh, after))


def gradients_of(plan: Plan, banks: Banks, state: State, batch: Batch) -> PyTree:
    """The gradients that a step would apply, as `params` of the state: for comparison and inspection."""
    return _gradients(plan, banks, state, batch)[0]


def _gradients(plan: Plan, banks: Banks, state: State, batch: Batch) -> tuple[PyTree, PyTree, Array]:
    """Mean gradients over the whole batch, running statistics after it, and mean (loss, accuracy)."""
    used = {name: state[name] for name in ("step", "params", "batch_stats", "constants")}
    if plan.mesh is None:
        return _part_gradients(plan, banks, used, batch)
    params = {"network": EVERYWHERE, "centres": SPEAKERS}
    spread = jax.shard_map(
        functools.partial(_part_gradients, plan),
        mesh=plan.mesh,
        in_specs=(EVERYWHERE, {**dict.fromkeys(used, EVERYWHERE), "params": params}, BATCH),
        out_specs=(params, EVERYWHERE, EVERYWHERE),
    )
    return spread(banks, used, batch)


def _augmented(config: TrainConfig, banks: Banks, step: Array, batch: Batch) -> tuple[Float[Array, "B S"], Array]:
    key = jax.random.fold_in(jax.random.key(config.run.seed), step)
    waveform_key, features_key = jax.random.split(key)
    waveforms = batch["waveforms"]
    if jnp.issubdtype(waveforms.dtype, jnp.integer):
        waveforms = waveforms.astype(jnp.float32) / 32768
    rate = config.model.fbank.sample_rate
    return augment(config.augment, rate, banks, waveform_key, waveforms, batch), features_key


def _loss(
    plan: Plan, key: Array, constants: Any, move: Array, params: PyTree, batch_stats: PyTree, part: Batch
) -> tuple[Float[Array, ""], tuple[PyTree, Array]]:
    """Mean loss of a micro-batch, with the running statistics it leaves and its share of right answers."""
    config = plan.config
    features, mask = _features(config, {"constants": constants}, part)
    features = spec_augment(config.augment, key, part["rows"], features, mask)
    apply = _apply_rematerialized if config.step.rematerialize else _apply
    network = params["network"]
    if plan.mesh is not None:  # before the cast, so that gradients are summed over devices in float32
        network = lax.pcast(network, (DATA, MODEL), to="varying")
    network = lower_precision(network, config.step.dtype)
    over = (DATA, MODEL) if plan.mesh is not None and config.mesh.batch_norm == "global" else ()
    embeddings, batch_stats = apply(config.model.ecapa, over, network, batch_stats, features, mask)
    if plan.mesh is not None:
        return _spread_loss(plan, move, params["centres"], embeddings, part["labels"], batch_stats)
    cosine = cosines(embeddings, params["centres"])
    logits = margin_logits(config.loss, cosine, part["labels"], move)
    loss = jnp.mean(cross_entropy(logits, part["labels"]))
    accuracy = jnp.mean(jnp.argmax(cosine, axis=1) == part["labels"])
    return loss, (batch_stats, accuracy)


def _spread_loss(
    plan: Plan, move: Array, centres: Array, embeddings: Array, labels: Array, batch_stats: PyTree
) -> tuple[Float[Array, ""], tuple[PyTree, Array]]:
    """The same over all devices: those of one model row share their embeddings, each has its speakers."""
    if plan.config.mesh.batch_norm == "replica":
        batch_stats = lax.pmean(batch_stats, (DATA, MODEL))
    n_rows = embeddings.shape[0] * mesh_size(plan.mesh)
    embeddings, labels = (lax.all_gather(part, MODEL, tiled=True) for part in (embeddings, labels))
    losses, right = sharded_margin_softmax(
        plan.config.loss, embeddings, centres, labels, move, plan.n_speakers or centres.shape[0], MODEL
    )
    loss, accuracy = (lax.psum(jnp.sum(part), DATA) / n_rows for part in (losses, right))
    return loss, (batch_stats, accuracy)


def _features(config: TrainConfig, variables: Any, part: Batch) -> tuple[Array, Array]:
    features, mask = fbank(config.model.fbank, part["waveforms"], part["lengths"])
    if config.data.short == "repeat":  # a constant, of which the compiler makes nothing: 6 % of a step
        mask = jnp.ones(mask.shape, bool)
    return lax.stop_gradient(features), mask


def _apply(
    config: EcapaConfig, over: tuple[str, ...], params: PyTree, batch_stats: PyTree, features: Array, mask: Array
) -> tuple[Array, PyTree]:
    variables = {"params": params, "batch_stats": batch_stats}
    return functional.apply(config, variables, features, mask, train=True, statistics_over=over)


_apply_rematerialized = jax.checkpoint(_apply, static_argnums=(0, 1))


def lower_precision(params: PyTree, dtype: str) -> PyTree:
    """Kernels in the compute dtype; biases and norms stay as they are."""
    if dtype == "float32":
        return params
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


def _part_gradients(plan: Plan, banks: Banks, state: State, batch: Batch) -> tuple[PyTree, PyTree, Array]:
    """Mean gradients over the micro-batches, running statistics after the last, and mean (loss, accuracy).

    On a mesh `batch` is this device's part; the results are of the whole batch.
    """
    config = plan.config
    here = batch["labels"].shape[0]
    n_rows, n_parts = here * mesh_size(plan.mesh), config.step.micro_batches
    rows = jnp.arange(here) if plan.mesh is None else local_rows(plan.mesh, n_rows, n_parts)
    lengths = batch["lengths"] if config.data.short == "zeros" else jnp.full(here, batch["waveforms"].shape[1])
    waveforms, key = _augmented(config, banks, state["step"], {**batch, "rows": rows, "lengths": lengths})
    part = {"waveforms": waveforms, "lengths": lengths, "labels": batch["labels"], "rows": rows}
    move = margin(config.loss, plan.clock, state["step"])
    loss_of = functools.partial(_loss, plan, key, state["constants"], move)
    differentiate = jax.value_and_grad(loss_of, has_aux=True)

    def one(carry: Any, share: Batch) -> tuple[Any, None]:
        gradients, batch_stats, measured = carry
        (loss, (batch_stats, accuracy)), more = differentiate(state["params"], batch_stats, share)
        gradients = jax.tree.map(lambda total, new: total + new / n_parts, gradients, more)
        return (gradients, batch_stats, measured + jnp.stack([loss, accuracy]) / n_parts), None

    if n_parts == 1:
        (loss, (batch_stats, accuracy)), gradients = differentiate(state["params"], state["batch_stats"], part)
        return gradients, batch_stats, jnp.stack([loss, accuracy])
    parts = jax.tree.map(lambda leaf: leaf.reshape(n_parts, -1, *leaf.shape[1:]), part)
    zeros = jax.tree.map(jnp.zeros_like, state["params"])
    carry, _ = lax.scan(one, (zeros, state["batch_stats"], jnp.zeros(2)), parts)
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
