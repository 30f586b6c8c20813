"""Learning rate and margin as functions of the step, for use inside jit."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ecapa_jax.train.config import LossConfig, OptimConfig, RunConfig


@dataclasses.dataclass(frozen=True)
class Clock:
    """Turns durations of the configuration into steps.

    Attributes:
      steps_per_unit: 1, or the steps of an epoch.
      total: steps of the run.
    """

    steps_per_unit: int
    total: int

    @classmethod
    def of(cls, run: RunConfig, steps_per_epoch: int) -> Clock:
        """Makes the clock of a run from the number of steps in an epoch."""
        per_unit = steps_per_epoch if run.unit == "epochs" else 1
        return cls(per_unit, max(1, round(run.length * per_unit)))

    def steps(self, duration: float) -> float:
        """Converts a duration of the configuration to steps."""
        return duration * self.steps_per_unit


def learning_rate(config: OptimConfig, clock: Clock, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the learning rate of a step.

    Reference: `speakerlab.process.scheduler` (WarmupCosineScheduler, StepScheduler),
      `speechbrain.nnet.schedulers.CyclicLRScheduler` (triangular), `wespeaker.utils.schedulers.ExponentialDecrease`.
    """
    elapsed = step.astype(_float_dtype())
    warmup, span = clock.steps(config.warmup), config.peak - config.floor
    every = max(clock.steps(config.every), 1.0)
    rise = jnp.clip(elapsed / max(warmup, 1.0), 0, 1) if warmup else jnp.ones_like(elapsed)
    if config.schedule == "warmup_cosine":
        progress = jnp.clip((elapsed - warmup) / max(clock.total - warmup, 1.0), 0, 1)
        falling = config.floor + 0.5 * span * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(elapsed < warmup, config.floor + span * rise, falling)
    if config.schedule == "cyclic":
        distance = jnp.abs(jnp.mod(elapsed, 2 * every) / every - 1)  # 1 at the ends of a cycle, 0 at its middle
        return config.floor + span * (1 - distance)
    if config.schedule == "step":
        return rise * config.peak * config.decay_factor ** jnp.floor(elapsed / every)
    if config.schedule == "exponential":
        return rise * config.peak * (config.floor / config.peak) ** (elapsed / clock.total)
    return rise * config.peak


def margin_at(config: LossConfig, clock: Clock, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the margin of a step.

    Reference: `speakerlab.process.scheduler.MarginScheduler`, whose exponential rise reaches 99.9 % at `end`.
    """
    elapsed, start, end = step.astype(_float_dtype()), clock.steps(config.start), clock.steps(config.end)
    if config.schedule == "constant":
        return jnp.full_like(elapsed, config.margin)
    if config.schedule == "step":
        progress = jnp.zeros_like(elapsed)
        end = start
    else:
        progress = (elapsed - start) / (end - start)
    if config.schedule == "exponential":
        progress = 1 - jnp.exp(progress * jnp.log(1e-3 / (1 + 1e-6)))
    rising = config.start_margin + (config.margin - config.start_margin) * progress
    return jnp.where(elapsed < start, config.start_margin, jnp.where(elapsed >= end, config.margin, rising))


def _float_dtype() -> jnp.dtype:
    """Returns float64 if it is enabled, which comparisons with other code do, otherwise float32."""
    return jnp.result_type(float)
