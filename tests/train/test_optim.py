"""The optimizer's parts; the whole is compared with PyTorch in tests/peers."""

import jax.numpy as jnp
import numpy as np
import pytest

from ecapa_jax.train.config import OptimConfig
from ecapa_jax.train.optim import apply_updates, move_average, optimizer


def test_a_moving_average_forgets_the_first_weights_soon():
    """After 200 steps at a decay of 0.999 the start still counted 82 % without the growing memory."""
    average = {"w": jnp.full(3, 100.0)}
    for step in range(200):
        average = move_average(average, {"w": jnp.ones(3)}, 0.999, jnp.asarray(step))
    assert float(jnp.abs(average["w"] - 1).max()) < 1e-3


def test_a_moving_average_is_the_sum_of_its_weights():
    values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    average, expected = jnp.zeros(()), 0.0
    for step, value in enumerate(values):
        average = move_average(average, jnp.asarray(value), 0.9, jnp.asarray(step))
        memory = min(0.9, (1 + step) / (10 + step))
        expected = memory * expected + (1 - memory) * float(value)
    assert float(average) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("decay", ["all", "kernels"])
def test_decay_leaves_biases_and_norms_alone_where_asked(decay):
    """A gradient of zero moves what decays, and nothing else."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    update = optimizer(OptimConfig(name="adamw", weight_decay=0.5, decay=decay))
    zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = update.update(zeros, update.init(params), params)
    moved = apply_updates(params, updates, jnp.asarray(0.1))
    np.testing.assert_allclose(moved["kernel"], 0.95, atol=1e-6)
    np.testing.assert_allclose(moved["bias"], 0.95 if decay == "all" else 1.0, atol=1e-6)
