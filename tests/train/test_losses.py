"""Tests of margin softmax losses against NumPy in float64, and of their limits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.train.config import LossConfig
from ecapa_jax.train.losses import cosines, cross_entropy, margin_logits

ROWS, SPEAKERS = 5, 7


def expected_logits(config: LossConfig, cosine: np.ndarray, labels: np.ndarray, margin: float) -> np.ndarray:
    """Computes logits element by element from the angle."""
    logits = cosine.astype(np.float64).copy()
    for row, label in enumerate(labels):
        others = [k for k in range(cosine.shape[1]) if k != label]
        for k in sorted(others, key=lambda k: -cosine[row, k])[: config.top_k]:
            angle = np.arccos(cosine[row, k])
            logits[row, k] = np.cos(angle - config.top_k_margin)
        value, angle = cosine[row, label], np.arccos(cosine[row, label])
        if config.kind == "aam":
            inside = angle + margin < np.pi
            beyond = value - (1 - np.cos(margin) if config.fallback == "continuous" else margin * np.sin(margin))
            logits[row, label] = np.cos(angle + margin) if inside else beyond
        elif config.kind == "am":
            logits[row, label] = value - margin
    return config.scale * logits


@pytest.mark.parametrize("kind", ["aam", "am", "softmax"])
@pytest.mark.parametrize("fallback", ["continuous", "sine"])
@pytest.mark.parametrize("top_k", [0, 3])
def test_logits_equal_the_formula(kind, fallback, top_k):
    top_k = top_k if kind != "softmax" else 0
    config = LossConfig(kind=kind, fallback=fallback, top_k=top_k, scale=30.0)
    generator = np.random.default_rng(0)
    cosine = generator.uniform(-0.999, 0.999, (ROWS, SPEAKERS)).astype(np.float32)
    labels = generator.integers(0, SPEAKERS, ROWS).astype(np.int32)
    cosine[0, labels[0]] = -0.999  # beyond the angle where the margin would exceed pi
    ours = margin_logits(config, jnp.asarray(cosine), jnp.asarray(labels), jnp.float32(0.3))
    np.testing.assert_allclose(ours, expected_logits(config, cosine, labels, 0.3), atol=1e-4)


def test_continuous_fallback_has_no_step():
    """Both branches are equal at the angle where they meet. The sine fallback has a step there."""
    turn = np.float32(np.cos(np.pi - 0.3))
    around = jnp.array([[turn - 1e-5], [turn + 1e-5]])
    steps = {
        fallback: float(
            np.ptp(margin_logits(LossConfig(fallback=fallback, scale=1.0), around, jnp.zeros(2, int), jnp.float32(0.3)))
        )
        for fallback in ("continuous", "sine")
    }
    assert steps["continuous"] < 1e-3 < steps["sine"]


def test_nearest_sub_centre_is_used():
    generator = np.random.default_rng(1)
    embeddings = generator.standard_normal((ROWS, 6)).astype(np.float32)
    centres = generator.standard_normal((SPEAKERS, 3, 6)).astype(np.float32)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    expected = np.einsum("bd,ksd->bks", unit(embeddings), unit(centres)).max(axis=-1)
    np.testing.assert_allclose(cosines(jnp.asarray(embeddings), jnp.asarray(centres)), expected, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31 - 1), st.floats(1.0, 64.0))
def test_cross_entropy_equals_negative_log_probability(seed, scale):
    generator = np.random.default_rng(seed)
    logits = (scale * generator.uniform(-1, 1, (ROWS, SPEAKERS))).astype(np.float32)
    labels = generator.integers(0, SPEAKERS, ROWS).astype(np.int32)
    wide = logits.astype(np.float64)
    expected = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1) - wide[np.arange(ROWS), labels]
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), jnp.asarray(labels)), expected, atol=1e-4)


@pytest.mark.parametrize("top_k", [0, 2])
def test_gradients_are_finite_where_vectors_coincide_or_vanish(top_k):
    """The test has a cosine of exactly 1 and an embedding of length zero."""
    config = LossConfig(top_k=top_k)
    centres = jnp.eye(SPEAKERS)[:, None]
    embeddings = jnp.concatenate([jnp.eye(SPEAKERS)[:1], jnp.zeros((1, SPEAKERS))])

    def loss(embeddings, centres):
        logits = margin_logits(config, cosines(embeddings, centres), jnp.zeros(2, int), jnp.float32(0.2))
        return jnp.mean(cross_entropy(logits, jnp.zeros(2, int)))

    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1)))(embeddings, centres):
        assert np.isfinite(gradient).all()


def test_loss_grows_with_the_margin():
    config = LossConfig()
    cosine = jnp.asarray(np.random.default_rng(2).uniform(-0.9, 0.9, (ROWS, SPEAKERS)), jnp.float32)
    labels = jnp.arange(ROWS)
    losses = [
        float(jnp.mean(cross_entropy(margin_logits(config, cosine, labels, jnp.float32(m)), labels)))
        for m in (0.0, 0.1, 0.2, 0.5)
    ]
    assert losses == sorted(losses)
    without = dataclasses.replace(config, kind="softmax")
    plain = float(jnp.mean(cross_entropy(margin_logits(without, cosine, labels, jnp.float32(0.5)), labels)))
    assert losses[0] == pytest.approx(plain, rel=1e-5)
