"""Tests of the exported model of every family in ONNX Runtime and OpenVINO against this library."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import onnx
import pytest

from ecapa_jax import functional
from ecapa_jax.batching import minimum_samples
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.config import FbankConfig, ModelConfig, StdConfig
from ecapa_jax.convert import parity as conversion
from ecapa_jax.convert.onnx.calibration import make_feature_function
from ecapa_jax.convert.onnx.export import export_onnx
from ecapa_jax.convert.sources import FAMILIES
from helpers import families, parity
from helpers.onnx_runs import RUNTIMES
from helpers.weights import random_tensors, shallow_config, variables_of

QUICK = {"xla_backend_optimization_level": 0}
EMBED = jax.jit(functional.embed, static_argnums=0, compiler_options=QUICK)

SECONDS = (0.1, 0.37, 1.27)


def _model(family: str) -> tuple[ModelConfig, dict[str, Any]]:
    """Returns random weights, with dead and faint channels if the helpers make them for the family."""
    if family in families.SEEDS:
        return families.config(family), families.variables(family)
    return conversion.golden_model(FAMILIES[family])


def _batch(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns real or synthetic speech of three lengths, padded with NaN; the first is the shortest valid length."""
    lengths = [minimum_samples(config), *(int(seconds * parity.RATE) for seconds in SECONDS)]
    sounds = [parity.speech()[index % 3][1000 : 1000 + length] for index, length in enumerate(lengths)]
    return parity.pad_batch(sounds)


@functools.cache
def _case(family: str) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the exported model, a batch padded with NaN, its lengths, and the expected embeddings.

    The expected embeddings are stored outputs of independent code if available, else those of this library.
    """
    config, variables = _model(family)
    model = export_onnx(Bundle(config=config, variables=variables))
    if family in families.SEEDS:
        waveforms, lengths = parity.pad_batch(families.signals().values())
        expected = np.stack([families.golden()[f"{family}/{signal}/embedding"] for signal in families.signals()])
    else:
        waveforms, lengths = _batch(config)
        expected = np.asarray(EMBED(config, variables, waveforms, lengths))
    return model, waveforms, lengths.astype(np.int64), expected


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_padded_with_nan_gives_the_expected_embeddings(family: str, runtime: str) -> None:
    pytest.importorskip("openvino" if runtime == "OpenVINO" else "onnxruntime")
    model, waveforms, lengths, expected = _case(family)
    found = RUNTIMES[runtime](model, {"waveforms": waveforms, "lengths": lengths})
    alone = {"waveforms": waveforms[2:3, : lengths[2]], "lengths": lengths[2:3]}
    worst = max(map(parity.relative_error, found, expected))
    by_itself = parity.relative_error(RUNTIMES[runtime](model, alone)[0], expected[2])
    print(f"{family} {runtime}: {worst:.1e} in the batch, {by_itself:.1e} alone")
    assert max(worst, by_itself) <= parity.EMBEDDING_BOUND


FRONT_ENDS: dict[str, dict[str, Any]] = {
    "snip_edges": {"pad_to": 8, "normalization": "none"},
    "kaldi_reflect": {},
    "center_zeros": {"normalization": "mean_std"},
    "center_reflect": {"pad_to": 8, "preemphasis_mode": "signal_reflect"},
    "center_zeros_floor": {"normalization": "mean_std", "preemphasis_mode": "signal_zero"},
}


@pytest.mark.parametrize("framing", FRONT_ENDS)
def test_every_framing_is_exported(framing: str) -> None:
    base = shallow_config()
    front_end = dataclasses.replace(base.fbank, framing=framing, **FRONT_ENDS[framing])
    config = dataclasses.replace(base, fbank=front_end)
    variables = variables_of(config.ecapa, random_tensors(config.ecapa))
    waveforms, lengths = _batch(config)
    ours = np.asarray(EMBED(config, variables, waveforms, lengths))
    model = export_onnx(Bundle(config=config, variables=variables))
    found = RUNTIMES["ONNX Runtime"](model, {"waveforms": waveforms, "lengths": lengths.astype(np.int64)})
    assert max(map(parity.relative_error, found, ours)) <= parity.EMBEDDING_BOUND


def test_too_short_waveform_gives_nan_in_its_own_row_only() -> None:
    config, variables = _model("3dspeaker")
    least = minimum_samples(config)
    waveforms, _ = _batch(config)
    lengths = np.array([least - 1, 0, least, 5000], np.int64)
    model = export_onnx(Bundle(config=config, variables=variables))
    found = RUNTIMES["ONNX Runtime"](model, {"waveforms": waveforms, "lengths": lengths})
    assert np.isnan(found).all(axis=1).tolist() == [True, True, False, False]
    short = {"waveforms": waveforms[:, :100], "lengths": np.array([100] * 4, np.int64)}
    assert np.isnan(RUNTIMES["ONNX Runtime"](model, short)).all()
    ours = np.asarray(EMBED(config, variables, waveforms, lengths.astype(np.int32)))
    assert max(map(parity.relative_error, found[2:], ours[2:])) <= parity.EMBEDDING_BOUND


BASE = dataclasses.replace(
    shallow_config(blocks=2).ecapa, n_mels=20, attention_channels=12, mfa_channels=48, embedding_dim=24
)
PLAIN = {"global_context": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {},
    "zeros": {"padding": "zeros"},
    "sum": {"block_input": "sum"},
    "last": {"multiscale": "last"},
    "grouped": {"multiscale": "grouped", "se_norm": True, "padding": "zeros"},
    "no_norm": {"norm": "none", "mfa_norm": False, "attention_hidden": "relu_tanh"},
    "relu_bn": {"attention_hidden": "relu_bn"},
    "no_context": PLAIN,
    "unbiased_add": {"context_std": StdConfig(unbiased=True, epsilon=1e-2, epsilon_mode="add")},
    "context_moment": {"mfa_norm": False, "context_std": StdConfig(form="moment", epsilon=1e-3)},
    "pooled_moment": {"mfa_norm": False, "pooled_std": StdConfig(form="moment", epsilon=1e-4, maximum=4.0)},
    "leaky_all": {"activation": "leaky_relu"},
    "leaky_outer": {"activation": "leaky_relu", "activation_scope": "outer", "embedding_norm": True},
    "three_blocks": {"channels": (16,) * 4, "kernel_sizes": (3, 5, 3, 1), "dilations": (1, 3, 5)},
    "wide_mfa_kernel": {"mfa_kernel_size": 3, "mfa_dilation": 2},
    "uneven_channels": {"channels": (24, 16, 8)},
    "mean": {"pooling": "mean", **PLAIN},
    "std": {"pooling": "std", **PLAIN},
    "mean_std": {"pooling": "mean_std", **PLAIN},
    "multi_head": {"pooling": "multi_head", **PLAIN},
    "multi_query": {"pooling": "multi_query", **PLAIN},
    "posterior": {"pooling": "posterior", **PLAIN},
}


def _random(config: ModelConfig) -> dict[str, Any]:
    drawn = functional.init(config, jax.random.key(0))
    statistics = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.3, drawn["batch_stats"])
    return {**drawn, "batch_stats": statistics}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_network_with_features_and_with_a_padded_batch(name: str) -> None:
    """Unpadded features and padded waveforms use different operators at the end of an utterance."""
    network = dataclasses.replace(BASE, **VARIANTS[name])
    config = ModelConfig(fbank=dataclasses.replace(FbankConfig(), n_mels=network.n_mels), ecapa=network)
    variables = _random(config)
    bundle = Bundle(config=config, variables=variables)
    waveforms, lengths = _batch(config)
    ours = np.asarray(EMBED(config, variables, waveforms, lengths))
    feed = {"waveforms": waveforms, "lengths": lengths.astype(np.int64)}
    found = RUNTIMES["ONNX Runtime"](export_onnx(bundle), feed)
    assert max(map(parity.relative_error, found, ours)) <= parity.EMBEDDING_BOUND
    row = len(lengths) - 1
    alone = {"waveforms": waveforms[row:, : lengths[row]], "lengths": feed["lengths"][row:]}
    features = make_feature_function(config, variables, "features")(alone)
    (found,) = RUNTIMES["ONNX Runtime"](export_onnx(bundle, "features"), features)
    assert parity.relative_error(found, ours[row]) <= parity.EMBEDDING_BOUND


@pytest.mark.parametrize("family", ["nemo", "nemo-2.5", "espnet"])
def test_feature_input_of_a_family_with_blank_frames(family: str) -> None:
    """The exported model adds the blank frames, so features are passed without them."""
    config, variables = _model(family)
    waveform = families.signals()["faint"]
    lengths = np.array([len(waveform)], np.int64)
    ours = np.asarray(EMBED(config, variables, waveform[None], lengths.astype(np.int32)))
    feed = make_feature_function(config, variables, "features")({"waveforms": waveform[None], "lengths": lengths})
    found = RUNTIMES["ONNX Runtime"](export_onnx(Bundle(config=config, variables=variables), "features"), feed)
    assert parity.relative_error(found[0], ours[0]) <= parity.EMBEDDING_BOUND


def test_node_names_are_those_of_the_network() -> None:
    config, variables = _model("3dspeaker")
    names = {node.name for node in export_onnx(Bundle(config=config, variables=variables)).graph.node}
    expected = {
        "front_end/spectrum", "stem/conv", "block_0/tdnn_in/conv", "block_1/res2/chunk_6/conv",
        "block_2/se/excite/conv", "block_2/output", "mfa/norm", "pooling/hidden/conv",
        "pooling/logits/conv", "projection/embeddings",
    }  # fmt: skip
    assert expected <= names
