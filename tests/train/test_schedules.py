"""Tests of learning rates and margins at defining points; tests/peers compares whole curves with speakerlab."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ecapa_jax.train.config import LossConfig, OptimConfig, RunConfig
from ecapa_jax.train.schedules import Clock, learning_rate, margin_at

CLOCK = Clock(steps_per_unit=10, total=700)


def learning_rates(config: OptimConfig, steps: list[int], clock: Clock = CLOCK) -> np.ndarray:
    return np.array([float(learning_rate(config, clock, jnp.int32(step))) for step in steps])


def test_epochs_are_converted_to_steps():
    assert Clock.of(RunConfig(unit="epochs", length=70.0), 10) == CLOCK
    assert Clock.of(RunConfig(unit="steps", length=70.0), 10) == Clock(1, 70)


def test_warm_up_and_cosine_equal_optax():
    config = OptimConfig(peak=0.2, floor=5e-5, warmup=5.0)
    theirs = optax.warmup_cosine_decay_schedule(5e-5, 0.2, 50, 700, 5e-5)
    steps = [0, 1, 25, 49, 50, 51, 375, 699, 700]
    np.testing.assert_allclose(learning_rates(config, steps), [theirs(step) for step in steps], rtol=1e-5, atol=1e-7)


def test_cyclic_rate_is_a_triangle():
    config = OptimConfig(schedule="cyclic", peak=1.0, floor=0.0, every=10.0)
    np.testing.assert_allclose(learning_rates(config, [0, 50, 100, 150, 200, 300]), [0, 0.5, 1, 0.5, 0, 1], atol=1e-6)


def test_step_and_exponential_decay():
    steps = OptimConfig(schedule="step", peak=1.0, floor=0.0, every=10.0, decay_factor=0.1)
    np.testing.assert_allclose(learning_rates(steps, [0, 99, 100, 250]), [1, 1, 0.1, 0.01], rtol=1e-5)
    exponential = OptimConfig(schedule="exponential", peak=0.1, floor=1e-4, warmup=2.0)
    theirs = 0.1 * (1e-3) ** (np.array([10, 350, 700]) / 700) * [0.5, 1, 1]
    np.testing.assert_allclose(learning_rates(exponential, [10, 350, 700]), theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "middle"), [("exponential", 0.3 * (1 - np.sqrt(1e-3 / (1 + 1e-6)))), ("linear", 0.15), ("step", 0.3)]
)
def test_margin_rises_between_start_and_end(schedule, middle):
    config = LossConfig(margin=0.3, schedule=schedule, start=20.0, end=50.0)
    found = [float(margin_at(config, CLOCK, jnp.int32(step))) for step in (0, 199, 350, 500, 699)]
    np.testing.assert_allclose(found, [0, 0, middle, 0.3, 0.3], rtol=1e-5)


def test_constant_margin():
    assert float(margin_at(LossConfig(margin=0.25), CLOCK, jnp.int32(3))) == pytest.approx(0.25)
