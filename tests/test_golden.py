"""Tests of parity with the original PyTorch code, against the outputs that golden/make_golden.py stored."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from ecapa_jax import functional
from ecapa_jax.config import ModelConfig
from ecapa_jax.convert.rules import apply_rules
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.features.fbank import fbank
from helpers import parity

EMBED = jax.jit(functional.embed, static_argnums=0)
FBANK = jax.jit(fbank, static_argnums=0)


@functools.cache
def _model(family: str) -> tuple[ModelConfig, dict]:
    """Returns the configuration and the variables that the converter makes from the family's checkpoint."""
    config, tensors = parity.golden_model(family)
    variables, _ = apply_rules(sb_layout.rules(config.ecapa), sb_layout.IGNORED, tensors, functional.abstract(config))
    return config, variables


@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_weights_have_the_hash_of_the_golden_values(family: str) -> None:
    _, tensors = parity.golden_model(family)
    stored = str(parity.golden()[f"{family}/weights"])
    assert parity.weights_hash(tensors) == stored, "helpers.weights changed: run tests/golden/make_golden.py again"


@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_features_are_within_the_bound(family: str) -> None:
    config, _ = _model(family)
    signals = parity.golden_signals()
    features, mask = FBANK(config.fbank, *parity.pad_batch(signals.values()))
    for row, signal in enumerate(signals):
        ours = np.asarray(features[row, : int(mask[row].sum())])
        error = parity.golden_feature_error(config.fbank, family, signal, ours)
        print(f"{family:<12}{signal:<13} features {error:.1e}")
        assert error <= parity.FEATURE_BOUND


@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_embeddings_of_a_padded_batch_are_within_the_bounds(family: str) -> None:
    """The batch has ten utterances of 1.25 s to 6.6 s, padded with NaN. The originals embedded them one by one."""
    config, variables = _model(family)
    signals = parity.golden_signals()
    embeddings = np.asarray(EMBED(config, variables, *parity.pad_batch(signals.values())))
    for row, signal in enumerate(signals):
        _check_embedding(family, signal, embeddings[row])


@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_embedding_of_one_utterance_is_within_the_bounds(family: str) -> None:
    config, variables = _model(family)
    waveform = parity.golden_signals()["clipped"]
    ours = EMBED(config, variables, waveform[None], np.array([len(waveform)], np.int32))
    _check_embedding(family, "clipped", np.asarray(ours[0]))


def _check_embedding(family: str, signal: str, ours: np.ndarray) -> None:
    theirs = parity.golden()[f"{family}/{signal}/embedding"]
    error, cosine = parity.relative_error(ours, theirs), parity.cosine(ours, theirs)
    print(f"{family:<12}{signal:<13} embedding {error:.1e} 1 - cosine {1 - cosine:.1e}")
    assert parity.same_embedding(ours, theirs)
