"""Tests of WeSpeaker's poolings with several heads or a posterior: the layer and the embedding."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecapa_jax import functional
from ecapa_jax.config import ModelConfig
from ecapa_jax.convert.rules import apply_rules
from ecapa_jax.convert.sources import wespeaker
from ecapa_jax.nn.ecapa import EcapaTdnn
from ecapa_jax.presets import PRESETS
from helpers.published import random_values, wespeaker_shapes

torch = pytest.importorskip("torch")

from helpers.originals import wespeaker_class  # noqa: E402 - it imports torch

try:
    wespeaker_class()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.peers

CASES = {"MHASTP": ("multi_head", 64), "MQMHASTP": ("multi_query", 64), "XI": ("posterior", 256)}
APPLY = jax.jit(functional.apply, static_argnums=0)


@functools.cache
def make_models(name: str) -> tuple[ModelConfig, Any, dict[str, Any]]:
    pooling, bottleneck = CASES[name]
    preset = PRESETS["wespeaker-c512"]
    changes = {"channels": (32,) * 4, "pooling": pooling, "attention_channels": bottleneck, "global_context": False}
    ecapa = dataclasses.replace(preset.ecapa, **changes)
    tensors = random_values(wespeaker_shapes(ecapa), seed=7)
    network = wespeaker_class()(
        channels=32, feat_dim=80, embed_dim=192, pooling_func=name, global_context_att=False
    ).eval()
    network.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in tensors.items()}, strict=True)
    assert wespeaker.infer(tensors, preset.ecapa) == ecapa
    config = dataclasses.replace(preset, ecapa=ecapa)
    variables, _ = apply_rules(wespeaker.rules(ecapa), wespeaker.FAMILY.ignored, tensors, functional.abstract(config))
    return config, network, variables


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", CASES)
def test_layer_and_embedding_equal_wespeaker(name: str) -> None:
    """Tests single utterances and padded batches of one or more frames.

    The bounds are 1e-5 for the layer, 1e-4 for the embedding, and 1e-6 for 1 - cosine.
    """
    config, network, variables = make_models(name)
    lengths = (1, 2, 30, 200)
    generator = np.random.default_rng(1)
    features = np.zeros((len(lengths), max(lengths), 80), np.float32)
    theirs, worst_layer = [], 0.0
    graph, _, _ = functional._abstract_network(config.ecapa)
    ours = nnx.merge(graph, *jax.tree.map(jnp.asarray, (variables["params"], variables["batch_stats"])))
    for row, length in enumerate(lengths):
        own = generator.standard_normal((1, length, 80)).astype(np.float32)
        features[row, :length] = own[0]
        seen: dict[str, np.ndarray] = {}
        handle = network.pool.register_forward_hook(lambda _, given, out, seen=seen: seen.update(x=given[0], y=out))
        with torch.no_grad():
            theirs.append(network(torch.from_numpy(own))[-1].numpy()[0])
        handle.remove()
        pooled = ours.pooling(jnp.asarray(seen["x"].numpy().transpose(0, 2, 1)), jnp.ones((1, length), bool))
        if length > 2:  # for one or two frames, the moment form is only rounding error
            worst_layer = max(worst_layer, relative(np.asarray(pooled), seen["y"].numpy()))
    features = np.where(np.arange(200)[None, :, None] < np.array(lengths)[:, None, None], features, 7.0)
    mask = np.arange(200) < np.array(lengths)[:, None]
    batch, _ = APPLY(config.ecapa, variables, features.astype(np.float32), mask)
    errors = [relative(np.asarray(batch[row]), theirs[row]) for row in range(len(lengths))]
    cosines = [
        float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(np.asarray(batch), theirs, strict=True)
    ]
    print(f"{name}: layer {worst_layer:.1e}, padded batch {max(errors):.1e}, 1 - cosine {1 - min(cosines):.1e}")
    assert worst_layer <= 1e-5
    assert max(errors) <= 1e-4
    assert min(cosines) >= 0.999999


@pytest.mark.parametrize("name", CASES)
def test_one_and_two_frames_in_float64_equal_wespeaker(name: str) -> None:
    config, network, variables = make_models(name)
    double = network.double()
    try:
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
            for length in (1, 2, 8):
                own = np.random.default_rng(length).standard_normal((1, length, 80))
                with torch.no_grad():
                    theirs = double(torch.from_numpy(own))[-1].numpy()
                embeddings, _ = functional.apply(config.ecapa, wide, own, np.ones((1, length), bool))
                error = relative(np.asarray(embeddings), theirs)
                print(f"{name}, {length} frames in float64: {error:.1e}")
                assert error <= 1e-9
    finally:
        network.float()


def test_every_pooling_module_is_tested() -> None:
    """Every case builds a pooling module with parameters."""
    for name in CASES:
        config, _, variables = make_models(name)
        assert EcapaTdnn(config.ecapa, rngs=nnx.Rngs(0)).pooling is not None
        assert variables["params"]["pooling"]
