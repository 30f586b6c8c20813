"""Tests of the optimizer's parts; tests/peers compares the whole optimizer with PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest

from ecapa_jax.train.config import OptimConfig
from ecapa_jax.train.optim import apply_updates, move_average, optimizer


def test_moving_average_forgets_the_initial_weights_quickly():
    """With a constant decay of 0.999, the initial weights would still have a share of 82 % after 200 steps."""
    average = {"w": jnp.full(3, 100.0)}
    for step in range(200):
        average = move_average(average, {"w": jnp.ones(3)}, 0.999, jnp.asarray(step))
    assert float(jnp.abs(average["w"] - 1).max()) < 1e-3


def test_moving_average_equals_the_weighted_sum():
    values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    average, expected = jnp.zeros(()), 0.0
    for step, value in enumerate(values):
        average = move_average(average, jnp.asarray(value), 0.9, jnp.asarray(step))
        memory = min(0.9, (1 + step) / (10 + step))
        expected = memory * expected + (1 - memory) * float(value)
    assert float(average) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("decay", ["all", "kernels"])
def test_weight_decay_can_exclude_biases_and_norms(decay):
    """With zero gradients, a step changes only the parameters that decay."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    update = optimizer(OptimConfig(name="adamw", weight_decay=0.5, decay=decay))
    zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = update.update(zeros, update.init(params), params)
    moved = apply_updates(params, updates, jnp.asarray(0.1))
    np.testing.assert_allclose(moved["kernel"], 0.95, atol=1e-6)
    np.testing.assert_allclose(moved["bias"], 0.95 if decay == "all" else 1.0, atol=1e-6)
