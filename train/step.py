"""One optimizer step: a pure function from state, waveforms and labels to the next state, jitted with a donated state.

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
from ecapa_jax.train.augment import Banks, augment, spec_augment, step_keys, to_float
from ecapa_jax.train.config import DataConfig, RunConfig, StartConfig, TrainConfig
from ecapa_jax.train.data.manifest import UNNAMED
from ecapa_jax.train.losses import Pairs, cosines, cross_entropy, margin_logits, teacher_loss
from ecapa_jax.train.optim import apply_updates, move_average, optimizer
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
from ecapa_jax.train.schedules import Clock, learning_rate, margin_at
from ecapa_jax.train.state import SUMS, State
from ecapa_jax.train.teacher import compute_targets

Batch = dict[str, Array]
"""
waveforms: [B, S] int16, or float in [-1, 1].
lengths: [B] int32, number of real samples; the rest of the waveform is padding. With `data.short = "repeat"` there is
  no padding: every length is S, and the program is compiled for that.
labels: [B] int32, class of each row; UNNAMED if it is unknown.
targets: [B, E] float32, the embedding of each row by the teacher, if a table teaches.
noise: [B, S] int16, if a folder of noises is given; noise_kind: [B] int32, NOISE or MUSIC.
On a mesh the rows have the order of `mesh.batch_rows`.
"""


@dataclasses.dataclass(frozen=True)
class StepSetup:
    """The static arguments of a step; made by `of`.

    Attributes:
      config: the run.
      clock: converts durations of the run to steps.
      mesh: the devices; None is one device.
      n_speakers: number of classes without padding; needed on a mesh, where the classifier may have rows of padding.
      teacher: the model of the bundle that teaches, if there is one.
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
        """Drops the settings that no step depends on, so that runs that differ only in these share one compilation."""
        run = RunConfig(seed=config.run.seed)
        data = DataConfig(batch_size=config.data.batch_size, short=config.data.short)
        return cls(
            dataclasses.replace(config, data=data, run=run, start=StartConfig()), clock, mesh, n_speakers, teacher
        )


@functools.cache
def compiled_step(setup: StepSetup) -> Any:
    """Returns the jitted function `step(banks, state, batch) -> state`, which donates the state it is given."""
    return jax.jit(functools.partial(train_step, setup), donate_argnums=1)


def train_step(setup: StepSetup, banks: Banks, state: State, batch: Batch) -> State:
    """Takes one step: augmentation, features, loss, gradients, update.

    A loss or gradient that is not finite changes nothing but `bad_step`, and after that no step has any effect. So when
    the loop next checks, it finds the weights from before the bad step.

    Args:
      setup: configuration and clock; static.
      banks: room impulse responses for the augmentation, and in `teacher` the arrays of a teacher bundle.
      state: see `State`.
      batch: see `Batch`.
    """
    gradients, batch_stats, measured = _compute_gradients(setup, banks, state, batch)
    after = _update(setup, state, gradients, batch_stats, measured)
    return after if setup.mesh is None else lax.with_sharding_constraint(after, state_shardings(setup.mesh, after))


def compute_gradients(setup: StepSetup, banks: Banks, state: State, batch: Batch) -> PyTree:
    """Returns the gradients that a step would apply, with the structure of `params`, for comparison and inspection."""
    return _compute_gradients(setup, banks, state, batch)[0]


def _compute_gradients(setup: StepSetup, banks: Banks, state: State, batch: Batch) -> tuple[PyTree, PyTree, Array]:
    """Returns mean gradients over the whole batch, running statistics after it, and the figures of the step."""
    used = {name: state[name] for name in ("step", "params", "batch_stats", "constants")}
    if setup.mesh is None:
        return _compute_local_gradients(setup, banks, used, batch)
    params = {"network": EVERYWHERE, "centres": SPEAKERS}
    sharded = jax.shard_map(
        functools.partial(_compute_local_gradients, setup),
        mesh=setup.mesh,
        in_specs=(EVERYWHERE, {**dict.fromkeys(used, EVERYWHERE), "params": params}, BATCH),
        out_specs=(params, EVERYWHERE, EVERYWHERE),
    )
    return sharded(banks, used, batch)


def _compute_loss(
    setup: StepSetup, key: Array, constants: Any, step_margin: Array, params: PyTree, batch_stats: PyTree, part: Batch
) -> tuple[Float[Array, ""], tuple[PyTree, Array]]:
    """Returns the mean loss of a micro-batch, the running statistics after it, and the figures of the step."""
    config = setup.config
    features, mask = _compute_features(config, {"constants": constants}, part)
    features = spec_augment(config.augment, key, part["rows"], features, mask)
    apply = _apply_rematerialized if config.step.rematerialize else _apply
    network = params["network"]
    if setup.mesh is not None:  # before the cast to a lower dtype, so that devices sum gradients in float32
        network = lax.pcast(network, (DATA, MODEL), to="varying")
    network = lower_precision(network, config.step.dtype)
    over = (DATA, MODEL) if setup.mesh is not None and config.mesh.batch_norm == "global" else ()
    embeddings, batch_stats = apply(config.model.ecapa, over, network, batch_stats, features, mask)
    if setup.mesh is not None and config.mesh.batch_norm == "replica":
        batch_stats = lax.pmean(batch_stats, (DATA, MODEL))
    loss, accuracy, agreement = jnp.zeros(()), jnp.zeros(()), jnp.zeros(())
    if config.teacher.is_used:
        loss, agreement = _compute_teacher_loss(setup, embeddings, part)
    if not config.teacher.is_used or config.teacher.labels:
        weight = config.teacher.labels if config.teacher.is_used else 1
        speaker_loss, accuracy = _compute_speaker_loss(
            setup, step_margin, params["centres"], embeddings, part["labels"]
        )
        loss = loss + weight * speaker_loss
    return loss, (batch_stats, jnp.stack([loss, accuracy, agreement]))


def _compute_teacher_loss(
    setup: StepSetup, embeddings: Array, part: Batch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the mean loss against the teacher and the mean cosine with the teacher, over all devices."""
    local = Pairs(embeddings, part["targets"], part["rows"])
    if setup.mesh is None:
        losses, agreement = teacher_loss(setup.config.teacher, local, local)
        return jnp.mean(losses), jnp.mean(agreement)
    gathered = (
        lax.all_gather(array, (DATA, MODEL), tiled=True) for array in (local.embeddings, local.targets, local.rows)
    )
    losses, agreement = teacher_loss(setup.config.teacher, local, Pairs(*gathered))
    n_rows = embeddings.shape[0] * mesh_size(setup.mesh)
    loss, cosine = (lax.psum(jnp.sum(rows), (DATA, MODEL)) / n_rows for rows in (losses, agreement))
    return loss, cosine


def _compute_speaker_loss(
    setup: StepSetup, step_margin: Array, centres: Array, embeddings: Array, labels: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns mean margin-softmax loss and accuracy of the examples that have a speaker, over all devices."""
    config = setup.config
    if setup.mesh is None:
        cosine = cosines(embeddings, centres)
        losses = cross_entropy(margin_logits(config.loss, cosine, labels, step_margin), labels)
        right = jnp.argmax(cosine, axis=1) == labels
    else:  # the devices of one row of the model axis share their embeddings; each has its own speakers
        embeddings, labels = (lax.all_gather(array, MODEL, tiled=True) for array in (embeddings, labels))
        losses, right = sharded_margin_softmax(
            config.loss, embeddings, centres, labels, step_margin, setup.n_speakers or centres.shape[0], MODEL
        )
    named = labels != UNNAMED
    if setup.mesh is not None:  # equal on all devices of a row of the model axis, which JAX can't infer
        named = lax.pmax(named.astype(jnp.int32), MODEL) == 1
    return _mean_over(setup, losses, named), _mean_over(setup, right, named)


def _mean_over(setup: StepSetup, values: Array, counted: Array) -> Float[Array, ""]:
    """Returns the mean of the counted rows; on a mesh, over its data axis."""
    total, number = jnp.sum(jnp.where(counted, values, 0)), jnp.sum(counted)
    if setup.mesh is not None:
        total, number = lax.psum(total, DATA), lax.psum(number, DATA)
    return total / jnp.maximum(number, 1)


def _compute_features(config: TrainConfig, variables: Any, part: Batch) -> tuple[Array, Array]:
    features, mask = fbank(config.model.fbank, part["waveforms"], part["lengths"])
    if config.data.short == "repeat":  # a constant mask, which the compiler removes, saves 6 % of a step
        mask = jnp.ones(mask.shape, bool)
    return lax.stop_gradient(features), mask


def _apply(
    config: EcapaConfig, over: tuple[str, ...], params: PyTree, batch_stats: PyTree, features: Array, mask: Array
) -> tuple[Array, PyTree]:
    variables = {"params": params, "batch_stats": batch_stats}
    return functional.apply(config, variables, features, mask, train=True, statistics_over=over)


_apply_rematerialized = jax.checkpoint(_apply, static_argnums=(0, 1))


def lower_precision(params: PyTree, dtype: str) -> PyTree:
    """Casts kernels to the compute dtype; biases and norms stay as they are."""
    if dtype == "float32":
        return params
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


def _compute_local_gradients(
    setup: StepSetup, banks: Banks, state: State, batch: Batch
) -> tuple[PyTree, PyTree, Array]:
    """Returns mean gradients over the micro-batches, running statistics after the last, and the figures of the step.

    The figures are the mean loss, the accuracy of the speakers, and the mean cosine with the teacher. On a mesh,
    `batch` is the part of this device, and the results belong to the whole batch.
    """
    config = setup.config
    n_local = batch["labels"].shape[0]
    n_rows, n_parts = n_local * mesh_size(setup.mesh), config.step.micro_batches
    rows = jnp.arange(n_local) if setup.mesh is None else local_rows(setup.mesh, n_rows, n_parts)
    lengths = batch["lengths"] if config.data.short == "zeros" else jnp.full(n_local, batch["waveforms"].shape[1])
    waveform_key, key = step_keys(config.run.seed, state["step"])
    clean, rate = to_float(batch["waveforms"]), config.model.fbank.sample_rate
    heard = {**batch, "rows": rows, "lengths": lengths}
    waveforms = augment(config.augment, rate, banks, waveform_key, clean, heard)
    part = {"waveforms": waveforms, "lengths": lengths, "labels": batch["labels"], "rows": rows}
    if setup.teacher is not None:
        part["targets"] = compute_targets(
            setup.teacher, banks["teacher"], _choose_teacher_views(config, key, rows, clean, waveforms), lengths
        )
    elif "targets" in batch:
        part["targets"] = batch["targets"]
    step_margin = margin_at(config.loss, setup.clock, state["step"])
    loss_of = functools.partial(_compute_loss, setup, key, state["constants"], step_margin)
    differentiate = jax.value_and_grad(loss_of, has_aux=True)

    def add_micro_batch(carry: Any, share: Batch) -> tuple[Any, None]:
        gradients, batch_stats, measured = carry
        (_, (batch_stats, figures)), more = differentiate(state["params"], batch_stats, share)
        gradients = jax.tree.map(lambda total, new: total + new / n_parts, gradients, more)
        return (gradients, batch_stats, measured + figures / n_parts), None

    if n_parts == 1:
        (_, (batch_stats, figures)), gradients = differentiate(state["params"], state["batch_stats"], part)
        return gradients, batch_stats, figures
    parts = jax.tree.map(lambda leaf: leaf.reshape(n_parts, -1, *leaf.shape[1:]), part)
    zeros = jax.tree.map(jnp.zeros_like, state["params"])
    carry, _ = lax.scan(add_micro_batch, (zeros, state["batch_stats"], jnp.zeros(3)), parts)
    return carry


def _choose_teacher_views(config: TrainConfig, key: Array, rows: Array, clean: Array, augmented: Array) -> Array:
    """Chooses what a teacher bundle hears: the view of the student for a share of the examples, the clean one else."""
    if config.teacher.same_view in (0, 1):
        return augmented if config.teacher.same_view else clean
    draws = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, row), 1)))(rows)
    return jnp.where((draws < config.teacher.same_view)[:, None], augmented, clean)


def _update(setup: StepSetup, state: State, gradients: PyTree, batch_stats: PyTree, measured: Array) -> State:
    config, norm = setup.config, optax.tree.norm(gradients)
    updates, opt_state = optimizer(config.optim).update(gradients, state["optimizer"], state["params"])
    rate = learning_rate(config.optim, setup.clock, state["step"])
    params = apply_updates(state["params"], updates, rate)
    average = state["average"]
    if config.optim.ema:
        live = {"params": params["network"], "batch_stats": batch_stats}
        average = move_average(average, live, config.optim.ema, state["step"])
    moved = {"params": params, "batch_stats": batch_stats, "optimizer": opt_state, "average": average}
    new = jnp.stack([jnp.ones(()), measured[0], measured[1], norm, measured[2]])
    moved["sums"] = {name: state["sums"][name] + value for name, value in zip(SUMS, new, strict=True)}
    good = jnp.isfinite(measured[0]) & jnp.isfinite(norm) & (state["bad_step"] < 0)
    kept = {name: state[name] for name in moved}
    chosen = jax.tree.map(lambda after, before: jnp.where(good, after, before), moved, kept)
    bad_step = jnp.where(good | (state["bad_step"] >= 0), state["bad_step"], state["step"])
    return {**state, **chosen, "step": state["step"] + 1, "bad_step": bad_step}
