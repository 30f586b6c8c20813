"""Tests of the network against the float64 oracle with every flag, length and padding."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax import functional
from ecapa_jax.config import EcapaConfig, StdConfig, from_dict, to_dict
from ecapa_jax.errors import ConfigError
from ecapa_jax.nn.layers import BatchNorm, pad_time
from helpers import parity
from helpers.oracle import Oracle
from helpers.weights import random_tensors, small_config, variables_of

BASE = dataclasses.replace(small_config(width=32).ecapa, n_mels=20, se_channels=16, attention_channels=24)

# The compiled programs run only once, so optimization would cost more than it saves.
QUICK = {"xla_backend_optimization_level": 0}
APPLY = jax.jit(functional.apply, static_argnums=0, static_argnames="train", compiler_options=QUICK)

VARIANTS = {
    "reference": {},
    "zeros": {"padding": "zeros"},
    "sum": {"block_input": "sum"},
    "last": {"multiscale": "last"},
    "grouped": {"multiscale": "grouped"},
    "se_norm": {"se_norm": True},
    "no_mfa_norm": {"mfa_norm": False},
    "embedding_norm": {"embedding_norm": True},
    "tanh": {"attention_hidden": "tanh"},
    "relu_bn": {"attention_hidden": "relu_bn"},
    "no_norm": {"norm": "none", "mfa_norm": False, "attention_hidden": "relu_tanh"},
    "no_context": {"global_context": False},
    "context_unbiased_add": {"context_std": StdConfig(unbiased=True, epsilon=1e-2, epsilon_mode="add")},
    "pooled_moment": {"mfa_norm": False, "pooled_std": StdConfig(form="moment", epsilon=1e-4, maximum=4.0)},
    "leaky_all": {"activation": "leaky_relu"},
    "leaky_outer": {"activation": "leaky_relu", "activation_scope": "outer"},
    "two_blocks": {"channels": (32,) * 3, "kernel_sizes": (3, 5, 3), "dilations": (1, 3)},
    "four_blocks": {"channels": (32,) * 5, "kernel_sizes": (5, 3, 3, 3, 3), "dilations": (2, 3, 4, 5)},
    "wide_mfa_kernel": {"mfa_kernel_size": 3, "mfa_dilation": 2},
    "uneven_channels": {"channels": (24, 32, 32, 48)},
    "dilations_1": {"dilations": (1, 1, 1), "multiscale": "grouped", "se_norm": True, "padding": "zeros"},
}


IN_FLOAT32 = ("reference", "no_norm", "context_unbiased_add", "dilations_1")


def _variant(name: str) -> EcapaConfig:
    return dataclasses.replace(BASE, **VARIANTS[name])


def _features(lengths: tuple[int, ...], n_mels: int, padding: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    size = max(lengths) + 3
    features = 2 * np.random.default_rng(seed).standard_normal((len(lengths), size, n_mels)).astype(np.float32)
    mask = np.arange(size) < np.array(lengths)[:, None]
    return np.where(mask[..., None], features, np.float32(padding)), mask


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_oracle(name: str) -> None:
    config = _variant(name)
    tensors = random_tensors(config, seed=1)
    lengths = (config.minimum_frames, config.minimum_frames + 1, 61)
    features, mask = _features(lengths, config.n_mels, padding=1e6)
    oracle = Oracle(config, tensors)
    expected = [oracle(features[row, :length]) for row, length in enumerate(lengths)]
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, variables_of(config, tensors))
        embeddings, _ = APPLY(config, wide, np.float64(features), mask)
    errors = list(map(parity.relative_error, embeddings, expected))
    print(f"{name:<22} T={lengths} error in float64 {max(errors):.1e}")
    assert max(errors) <= 1e-10
    if name in IN_FLOAT32:
        embeddings, _ = APPLY(config, variables_of(config, tensors), features, mask)
        print(f"{name:<22} in float32 {max(map(parity.relative_error, embeddings, expected)):.1e}")
        assert all(map(parity.same_embedding, embeddings, expected))


@pytest.mark.parametrize(
    "name",
    ["zeros", "sum", "last", "tanh", "relu_bn", "no_mfa_norm", "no_norm", "leaky_all", "leaky_outer"]
    + ["context_unbiased_add", "pooled_moment"],
)
def test_each_flag_changes_the_embedding(name: str) -> None:
    """If a flag had no effect, the test above would pass for the wrong reason."""
    tensors = random_tensors(BASE, seed=1)
    features, _ = _features((40,), BASE.n_mels, padding=0)
    reference = Oracle(BASE, tensors)(features[0, :40])
    changed = Oracle(_variant(name), tensors)(features[0, :40])
    assert np.abs(changed - reference).max() > 1e-3 * np.abs(reference).max()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([5, 6, 31]), min_size=1, max_size=4),  # only a few, because every length compiles
    size=st.sampled_from([31, 60]),
    padding=st.sampled_from([0.0, 1e30, -5.0, float("inf")]),
    seed=st.integers(0, 3),
)
def test_padding_and_other_rows_do_not_change_the_embedding(
    lengths: list[int], size: int, padding: float, seed: int
) -> None:
    """The test uses float64, where any difference is an error. In float32, the order of additions matters."""
    config, variables = _cached_reference()
    generator = np.random.default_rng(seed)
    features = np.full((4, size, config.n_mels), padding)
    rows = (lengths * 4)[:4]
    for row, length in enumerate(rows):
        features[row, :length] = generator.standard_normal((length, config.n_mels))
    mask = np.arange(size) < np.array(rows)[:, None]
    with jax.enable_x64(True):
        together, _ = APPLY(config, variables, features, mask)
        for row, length in enumerate(rows[: len(lengths)]):
            alone, _ = APPLY(config, variables, features[row : row + 1, :length], mask[row : row + 1, :length])
            assert alone.dtype == np.float64
            assert parity.relative_error(together[row], alone[0]) <= 1e-12


def _cached_reference() -> tuple[EcapaConfig, dict]:
    config = dataclasses.replace(BASE, channels=(16,) * 4, mfa_channels=48)
    return config, jax.tree.map(np.float64, variables_of(config, random_tensors(config, seed=2)))


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_pad_time_pads_each_utterance_at_its_end(mode: str, width: int) -> None:
    lengths = (5, 9, 6)
    x, mask = _features(lengths, 3, padding=np.nan)
    ours = pad_time(jnp.asarray(x), jnp.asarray(mask), width, "zeros" if mode == "constant" else mode)
    for row, length in enumerate(lengths):
        expected = np.pad(x[row, :length], ((width, width), (0, 0)), mode=mode)
        np.testing.assert_array_equal(ours[row, : length + 2 * width], expected)
    assert np.isfinite(ours).all()


def test_running_variance_equals_pytorch() -> None:
    """The batch is normalized by its biased variance, and the running average uses the unbiased variance."""
    lengths = (7, 12)
    x, mask = _features(lengths, 4, padding=1e9)
    norm = BatchNorm(4, momentum=0.25)
    normalized = norm(jnp.asarray(x), jnp.asarray(mask), train=True)
    real = np.concatenate([x[row, :length] for row, length in enumerate(lengths)]).astype(np.float64)
    np.testing.assert_allclose(norm.mean[...], 0.25 * real.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.75 + 0.25 * real.var(0, ddof=1), rtol=1e-5)
    expected = (real - real.mean(0)) / np.sqrt(real.var(0) + 1e-5)
    np.testing.assert_allclose(normalized[0, :7], expected[:7], atol=1e-5)


def test_training_call_updates_only_the_statistics() -> None:
    config, variables = _cached_reference()
    features, mask = _features((20, 31), config.n_mels, padding=0)
    _, moved = APPLY(config, variables, features, mask, train=True)
    kept = variables["batch_stats"]
    assert jax.tree.structure(moved) == jax.tree.structure(kept)
    changed = [bool(np.any(a != b)) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(kept), strict=True)]
    assert all(changed)

    def inference(variables: dict) -> None:
        assert functional.apply(config, variables, features, mask)[1] is variables["batch_stats"]

    jax.eval_shape(inference, variables)


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_sizes": (4, 3, 3, 3)},
        {"dilations": (2, 3)},
        {"res2_scale": 7},
        {"norm": "none"},
        {"channels": (1024,)},
        {"channels": (32, 64, 64, 64), "block_input": "sum"},
        {"embedding_dim": 0},
        {"pooled_std": StdConfig(unbiased=True)},
    ],
)
def test_invalid_configs_are_refused(change: dict) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(BASE, **change)


@pytest.mark.parametrize(
    "change", [{"padding": "circular"}, {"channels": [32.5] * 4}, {"width": 3}, {"mfa_norm": 1}, {"norm_epsilon": None}]
)
def test_error_names_the_invalid_json_field(change: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        from_dict(EcapaConfig, {**to_dict(BASE), **change}, "ecapa")


def test_config_survives_a_json_round_trip() -> None:
    assert from_dict(EcapaConfig, json.loads(json.dumps(to_dict(BASE))), "ecapa") == BASE
