"""Trains speakerlab's network, classifier, margin and schedulers with torch's SGD, and this library's beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from speakerlab.loss import margin_loss
from speakerlab.models.campplus import classifier
from speakerlab.models.ecapa_tdnn import ECAPA_TDNN as speakerlab
from speakerlab.process import scheduler

from ecapa_jax.convert.rules import flatten, invert_rules
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.features.fbank import fbank
from ecapa_jax.train.config import DataConfig, LossConfig, OptimConfig, RunConfig, TrainConfig
from ecapa_jax.train.schedules import Clock
from ecapa_jax.train.state import init_state
from ecapa_jax.train.step import StepSetup, compiled_step, compute_gradients
from helpers.weights import small_config

STEPS, BATCH, SPEAKERS = 20, 6, 11
SAMPLES = (
    5360  # 32 frames: speakerlab weights frames by 1 / T in float32 even in a float64 network, and 1 / 32 is exact
)
CONFIG = TrainConfig(
    model=small_config("3dspeaker", 16, embedding_dim=24, se_channels=8, attention_channels=8),
    data=DataConfig(batch_size=BATCH),
    loss=LossConfig(scale=32.0, margin=0.3, schedule="exponential", start=5.0, end=15.0),
    optim=OptimConfig(peak=1e-3, floor=5e-5, warmup=4.0, weight_decay=1e-4),
    run=RunConfig(length=float(STEPS)),
)
PLAN = StepSetup.of(CONFIG, Clock.of(CONFIG.run, 1))


def batches() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    waveforms = generator.standard_normal((STEPS, BATCH, SAMPLES)) * np.exp(generator.normal(-2, 1, (STEPS, BATCH, 1)))
    labels = generator.integers(0, SPEAKERS, (STEPS, BATCH)).astype(np.int32)
    lengths = np.full(BATCH, SAMPLES, np.int32)
    return [
        {"waveforms": w.astype(np.float32), "lengths": lengths, "labels": k}
        for w, k in zip(waveforms, labels, strict=True)
    ]


class SpeakerlabTraining:
    """The recipe with the parts of speakerlab and PyTorch."""

    def __init__(self, variables: dict, centres: np.ndarray, dtype: Any):
        ecapa = CONFIG.model.ecapa
        self.network = speakerlab.ECAPA_TDNN(
            ecapa.n_mels,
            channels=[*ecapa.channels, ecapa.mfa_channels],
            lin_neurons=ecapa.embedding_dim,
            attention_channels=ecapa.attention_channels,
            se_channels=ecapa.se_channels,
        )
        tensors = {name: torch.from_numpy(np.array(t)) for name, t in invert_rules(RULES, variables).items()}
        missing = self.network.load_state_dict(tensors, strict=False)
        assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
        self.classifier = classifier.CosineClassifier(ecapa.embedding_dim, out_neurons=SPEAKERS)
        self.classifier.weight.data = torch.from_numpy(np.array(centres[:, 0]))
        self.network.to(dtype).train()
        self.classifier.to(dtype).train()
        self.loss = margin_loss.ArcMarginLoss(scale=CONFIG.loss.scale, margin=0.0)
        optim, loss = CONFIG.optim, CONFIG.loss
        parameters = [*self.network.parameters(), *self.classifier.parameters()]
        self.sgd = torch.optim.SGD(parameters, lr=optim.floor, momentum=0.9, nesterov=True, weight_decay=1e-4)
        self.rate = scheduler.WarmupCosineScheduler(self.sgd, optim.floor, optim.peak, 4, STEPS, 1)
        self.margin = scheduler.MarginScheduler(self.loss, loss.start, loss.end, 1, 0.0, loss.margin)

    def step(self, number: int, features: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        self.rate.step(number)
        self.margin.step(number)
        cosine = self.classifier(self.network(torch.from_numpy(features)))
        loss = self.loss(cosine, torch.from_numpy(labels).long())
        self.sgd.zero_grad()
        loss.backward()
        gradients = {name: p.grad.numpy().copy() for name, p in self.network.named_parameters()}
        gradients["classifier"] = self.classifier.weight.grad.numpy().copy()
        self.sgd.step()
        return loss.item(), gradients

    def tensors(self) -> dict[str, np.ndarray]:
        state = {name: t.detach().numpy() for name, t in self.network.state_dict().items() if "tracked" not in name}
        return {**state, "classifier": self.classifier.weight.detach().numpy()}


RULES = sb_layout.rules(CONFIG.model.ecapa)


def ours_by_name(state: dict) -> dict[str, np.ndarray]:
    variables = {"params": state["params"]["network"], "batch_stats": state["batch_stats"]}
    leaves = flatten(jax.tree.map(np.asarray, variables))
    named = {rule.source: rule.op.inverse(leaves[rule.target]) for rule in RULES}  # invert_rules gives float32
    return {**named, "classifier": np.asarray(state["params"]["centres"][:, 0])}


def distance(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Returns the worst difference of any tensor, divided by the largest value of speakerlab's tensors of that kind."""
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)


def start(dtype: Any) -> tuple[dict, SpeakerlabTraining]:
    """Returns equal initial states of both libraries; the values are float32, because checkpoints are."""
    with jax.enable_x64(False):
        state = jax.tree.map(np.asarray, init_state(CONFIG, SPEAKERS))
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype == np.float32 else None), state)
    variables = {"params": state["params"]["network"], "batch_stats": state["batch_stats"]}
    torch_dtype = torch.float64 if dtype == np.float64 else torch.float32
    theirs = SpeakerlabTraining(
        jax.tree.map(np.asarray, variables), np.asarray(state["params"]["centres"]), torch_dtype
    )
    return state, theirs


@dataclasses.dataclass(frozen=True)
class StepDifference:
    """Differences between both libraries after a step.

    Attributes:
      loss: the difference of the losses, divided by the larger of speakerlab's loss and 1.
      gradients: the largest norm of the difference of a tensor's gradients, divided by the largest gradient norm.
      weights, statistics: the largest difference of any weight, and of any running statistic.
    """

    loss: float
    gradients: float
    weights: float
    statistics: float


def step_differences(dtype: Any) -> Iterator[StepDifference]:
    """Trains both libraries on the same batches in this dtype; float64 needs JAX's x64 mode."""
    state, theirs = start(dtype)
    step, features_of = compiled_step(PLAN), jax.jit(fbank, static_argnums=0)
    gradients_at = jax.jit(compute_gradients, static_argnums=0)
    for number, batch in enumerate(batches()):
        batch = {**batch, "waveforms": batch["waveforms"].astype(dtype)}
        features, _ = features_of(CONFIG.model.fbank, batch["waveforms"], batch["lengths"])
        before = float(state["sums"]["loss"])
        gradients = gradients_at(PLAN, {}, state, jax.tree.map(jnp.asarray, batch))
        loss, their_gradients = theirs.step(number, np.array(features), batch["labels"])
        named = ours_by_name({"params": gradients, "batch_stats": state["batch_stats"]})
        state = step({}, state, batch)
        assert int(state["bad_step"]) == -1
        ours, expected = ours_by_name(state), theirs.tensors()
        running = {name for name in expected if "running" in name}
        yield StepDifference(
            abs(float(state["sums"]["loss"]) - before - loss) / max(1, abs(loss)),
            gradient_gap(named, their_gradients),
            *(
                distance({name: ours[name] for name in names}, {name: expected[name] for name in names})
                for names in (expected.keys() - running, running)
            ),
        )


def gradient_gap(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Returns the largest norm of the difference of a tensor's gradients, divided by speakerlab's largest norm."""
    largest = max(float(np.linalg.norm(gradient)) for gradient in theirs.values())
    return max(float(np.linalg.norm(ours[name] - gradient)) for name, gradient in theirs.items()) / largest
