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
from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.features.fbank import fbank
from ecapa_jax.train.augment import Banks, as_float, augment, spec_augment, step_keys
from ecapa_jax.train.config import DataConfig, RunConfig, StartConfig, TrainConfig
from ecapa_jax.train.data.manifest import UNNAMED
from ecapa_jax.train.losses import Pairs, cosines, cross_entropy, margin_logits, teacher_loss
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
from ecapa_jax.train.teacher import bundle_targets

Batch = dict[str, Array]
"""
waveforms: [B, S] int16, or float in [-1, 1].
lengths: [B] int32, samples that are speech; beyond them the waveform is padding. With `data.short = "repeat"` there is
  none: every length is S, and the program is made for that.
labels: [B] int32, class of each row; UNNAMED where nobody knows it.
targets: [B, E] float32, the teacher's embedding of each row, where a table of them teaches.
noise: [B, S] int16, where a folder of noises is named; noise_kind: [B] int32, which of them it is.
On a mesh the rows stand in the order of `mesh.batch_rows`.
"""


@dataclasses.dataclass(frozen=True)
class StepSetup:
    """What is static in a step; made by `of`.

    Attributes:
      config: the run.
      clock: its durations.
      mesh: the devices; None is one.
      n_speakers: classes; on a mesh, whose classifier may have rows of padding.
      teacher: the model of the bundle that teaches; None without one.
    """

    config: TrainConfig
    clock: Clock
    mesh: Mesh | None = None
    n_speakers: int = 0
    teacher: ModelConfig | None = None

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        clock: Clock,
        mesh: Mesh | None = None,
        n_speakers: int = 0,
        teacher: ModelConfig | None = None,
    ) -> StepSetup:
        """Without what no step depends on: runs that differ in their files or reports only share one compilation."""
        run = RunConfig(seed=config.run.seed)
        data = DataConfig(batch_size=config.data.batch_size, short=config.data.short)
        return cls(
            dataclasses.replace(config, data=data, run=run, start=StartConfig()), clock, mesh, n_speakers, teacher
        )


@functools.cache
def compiled_step(plan: StepSetup) -> Any:
    """`step(banks, state, batch) -> state`, jitted; the given state is used up."""
    return jax.jit(functools.partial(train_step, plan), donate_argnums=1)


def train_step(plan: StepSetup, banks: Banks, state: State, batch: Batch) -> State:
    """One step: augmentation, features, loss, gradients, update.

    A loss or gradient that is not finite changes nothing but `bad_step`, from which on every step is without effect:
    the loop finds it at its next look, with the weights as they were before.

    Args:
      plan: configuration and clock; static.
      banks: room impulse responses for the augmentation, and in `teacher` the arrays of a teacher bundle.
      state: see `State`.
      batch: see `Batch`.
    """
    gradients, batch_stats, measured = _gradients(plan, banks, state, batch)
    after = _updated(plan, state, gradients, batch_stats, measured)
    return after if plan.mesh is None else lax.with_sharding_constraint(after, state_shardings(plan.mesh, after))


def gradients_of(plan: StepSetup, banks: Banks, state: State, batch: Batch) -> PyTree:
    """The gradients that a step would apply, as `params` of the state: for comparison and inspection."""
    return _gradients(plan, banks, state, batch)[0]


def _gradients(plan: StepSetup, banks: Banks, state: State, batch: Batch) -> tuple[PyTree, PyTree, Array]:
    """Mean gradients over the whole batch, running statistics after it, and the step's figures."""
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


def _loss(
    plan: StepSetup, key: Array, constants: Any, move: Array, params: PyTree, batch_stats: PyTree, part: Batch
) -> tuple[Float[Array, ""], tuple[PyTree, Array]]:
    """Mean loss of a micro-batch, with the running statistics it leaves and its figures as in `_part_gradients`."""
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
    if plan.mesh is not None and config.mesh.batch_norm == "replica":
        batch_stats = lax.pmean(batch_stats, (DATA, MODEL))
    loss, accuracy, agreement = jnp.zeros(()), jnp.zeros(()), jnp.zeros(())
    if config.teacher.is_used:
        loss, agreement = _teacher_loss(plan, embeddings, part)
    if not config.teacher.is_used or config.teacher.labels:
        weight = config.teacher.labels if config.teacher.is_used else 1
        speaker_loss, accuracy = _speaker_loss(plan, move, params["centres"], embeddings, part["labels"])
        loss = loss + weight * speaker_loss
    return loss, (batch_stats, jnp.stack([loss, accuracy, agreement]))


def _teacher_loss(plan: StepSetup, embeddings: Array, part: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean loss against the teacher and mean cosine with it, over all devices."""
    own = Pairs(embeddings, part["targets"], part["rows"])
    if plan.mesh is None:
        losses, agreement = teacher_loss(plan.config.teacher, own, own)
        return jnp.mean(losses), jnp.mean(agreement)
    gathered = (lax.all_gather(array, (DATA, MODEL), tiled=True) for array in (own.embeddings, own.targets, own.rows))
    losses, agreement = teacher_loss(plan.config.teacher, own, Pairs(*gathered))
    n_rows = embeddings.shape[0] * mesh_size(plan.mesh)
    loss, cosine = (lax.psum(jnp.sum(rows), (DATA, MODEL)) / n_rows for rows in (losses, agreement))
    return loss, cosine


def _speaker_loss(
    plan: StepSetup, move: Array, centres: Array, embeddings: Array, labels: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean margin-softmax loss and share of right answers of the examples that have a speaker, over all devices."""
    config = plan.config
    if plan.mesh is None:
        cosine = cosines(embeddings, centres)
        losses = cross_entropy(margin_logits(config.loss, cosine, labels, move), labels)
        right = jnp.argmax(cosine, axis=1) == labels
    else:  # the devices of one model row share their embeddings, each has its speakers
        embeddings, labels = (lax.all_gather(array, MODEL, tiled=True) for array in (embeddings, labels))
        losses, right = sharded_margin_softmax(
            config.loss, embeddings, centres, labels, move, plan.n_speakers or centres.shape[0], MODEL
        )
    named = labels != UNNAMED
    if plan.mesh is not None:  # the same on all devices of a model row, which the compiler can't know
        named = lax.pmax(named.astype(jnp.int32), MODEL) == 1
    return _mean_over(plan, losses, named), _mean_over(plan, right, named)


def _mean_over(plan: StepSetup, values: Array, counted: Array) -> Float[Array, ""]:
    """The mean of the counted rows; on a mesh over its data axis."""
    total, number = jnp.sum(jnp.where(counted, values, 0)), jnp.sum(counted)
    if plan.mesh is not None:
        total, number = lax.psum(total, DATA), lax.psum(number, DATA)
    return total / jnp.maximum(number, 1)


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


def _part_gradients(plan: StepSetup, banks: Banks, state: State, batch: Batch) -> tuple[PyTree, PyTree, Array]:
    """Mean gradients over the micro-batches, running statistics after the last, and the step's figures.

    The figures are the mean loss, the share of right answers among the speakers, and the mean cosine with the teacher.
    On a mesh `batch` is this device's part; the results are of the whole batch.
    """
    config = plan.config
    here = batch["labels"].shape[0]
    n_rows, n_parts = here * mesh_size(plan.mesh), config.step.micro_batches
    rows = jnp.arange(here) if plan.mesh is None else local_rows(plan.mesh, n_rows, n_parts)
    lengths = batch["lengths"] if config.data.short == "zeros" else jnp.full(here, batch["waveforms"].shape[1])
    waveform_key, key = step_keys(config.run.seed, state["step"])
    clean, rate = as_float(batch["waveforms"]), config.model.fbank.sample_rate
    heard = {**batch, "rows": rows, "lengths": lengths}
    waveforms = augment(config.augment, rate, banks, waveform_key, clean, heard)
    part = {"waveforms": waveforms, "lengths": lengths, "labels": batch["labels"], "rows": rows}
    if plan.teacher is not None:
        part["targets"] = bundle_targets(
            plan.teacher, banks["teacher"], _teacher_views(config, key, rows, clean, waveforms), lengths
        )
    elif "targets" in batch:
        part["targets"] = batch["targets"]
    move = margin(config.loss, plan.clock, state["step"])
    loss_of = functools.partial(_loss, plan, key, state["constants"], move)
    differentiate = jax.value_and_grad(loss_of, has_aux=True)

    def one(carry: Any, share: Batch) -> tuple[Any, None]:
        gradients, batch_stats, measured = carry
        (_, (batch_stats, figures)), more = differentiate(state["params"], batch_stats, share)
        gradients = jax.tree.map(lambda total, new: total + new / n_parts, gradients, more)
        return (gradients, batch_stats, measured + figures / n_parts), None

    if n_parts == 1:
        (_, (batch_stats, figures)), gradients = differentiate(state["params"], state["batch_stats"], part)
        return gradients, batch_stats, figures
    parts = jax.tree.map(lambda leaf: leaf.reshape(n_parts, -1, *leaf.shape[1:]), part)
    zeros = jax.tree.map(jnp.zeros_like, state["params"])
    carry, _ = lax.scan(one, (zeros, state["batch_stats"], jnp.zeros(3)), parts)
    return carry


def _teacher_views(config: TrainConfig, key: Array, rows: Array, clean: Array, augmented: Array) -> Array:
    """What a teacher bundle hears: for a share of the examples the student's own view, else the clean one."""
    if config.teacher.same_view in (0, 1):
        return augmented if config.teacher.same_view else clean
    draws = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, row), 1)))(rows)
    return jnp.where((draws < config.teacher.same_view)[:, None], augmented, clean)


def _updated(plan: StepSetup, state: State, gradients: PyTree, batch_stats: PyTree, measured: Array) -> State:
    config, norm = plan.config, optax.tree.norm(gradients)
    updates, opt_state = optimizer(config.optim).update(gradients, state["optimizer"], state["params"])
    rate = learning_rate(config.optim, plan.clock, state["step"])
    params = apply_updates(state["params"], updates, rate)
    average = state["average"]
    if config.optim.ema:
        live = {"params": params["network"], "batch_stats": batch_stats}
        average = moved_average(average, live, config.optim.ema, state["step"])
    moved = {"params": params, "batch_stats": batch_stats, "optimizer": opt_state, "average": average}
    new = jnp.stack([jnp.ones(()), measured[0], measured[1], norm, measured[2]])
    moved["sums"] = {name: state["sums"][name] + value for name, value in zip(SUMS, new, strict=True)}
    good = jnp.isfinite(measured[0]) & jnp.isfinite(norm) & (state["bad_step"] < 0)
    kept = {name: state[name] for name in moved}
    chosen = jax.tree.map(lambda after, before: jnp.where(good, after, before), moved, kept)
    bad_step = jnp.where(good | (state["bad_step"] >= 0), state["bad_step"], state["step"])
    return {**state, **chosen, "step": state["step"] + 1, "bad_step": bad_step}
