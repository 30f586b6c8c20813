"""Tests against WeSpeaker's classes: features, every layer in order, and the embedding of a waveform."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecapa_jax import functional
from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.convert.rules import apply_rules
from ecapa_jax.convert.sources import wespeaker
from ecapa_jax.features.fbank import fbank
from ecapa_jax.features.frames import minimum_samples
from ecapa_jax.masks import masked_mean
from ecapa_jax.nn.ecapa import EcapaTdnn
from ecapa_jax.presets import PRESETS
from helpers import parity
from helpers.published import random_values, wespeaker_shapes
from helpers.traces import Trace, traced

torch = pytest.importorskip("torch")
kaldi = pytest.importorskip("torchaudio.compliance.kaldi")

from helpers.originals import wespeaker_class  # noqa: E402 - it imports torch

try:
    wespeaker_class()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.peers

PRESET = PRESETS["wespeaker-c1024"]
QUICK = {"xla_backend_optimization_level": 0}
EMBED = jax.jit(functional.embed, static_argnums=0, compiler_options=QUICK)
FBANK = jax.jit(fbank, static_argnums=0)
APPLY = jax.jit(functional.apply, static_argnums=0, compiler_options=QUICK)
SIZE = 304
"""Number of frames of a padded batch."""


def their_features(waveform: np.ndarray) -> np.ndarray:
    """Computes features like `wespeaker.cli.speaker`: 16-bit range, hamming, no dither, mean subtracted."""
    samples = torch.from_numpy(waveform)[None] * (1 << 15)
    features = kaldi.fbank(
        samples, num_mel_bins=80, frame_length=25, frame_shift=10, sample_frequency=16000, window_type="hamming"
    )
    return (features - features.mean(dim=0)).numpy()


NAMES = {
    "ASTP GLOB": ("attentive", True, False),
    "ASTP": ("attentive", False, False),
    "ASTP GLOB bn2": ("attentive", True, True),
    "TSTP": ("mean_std", False, False),
    "TAP": ("mean", False, False),
    "TSDP": ("std", False, False),
}
POOLINGS = {"attentive": "ASTP", "mean": "TAP", "std": "TSDP", "mean_std": "TSTP"}
CALM, LOUD = 0.05, 5.0
"""Values of nearly constant channels, below and far above the deviations of the other channels."""


def hard_tensors(config: EcapaConfig, loudness: float) -> dict[str, np.ndarray]:
    """Returns random weights with MFA channels that are zero or nearly constant, to reveal clamps and floors.

    If a constant is large, the moment form of its deviation is only rounding error, here and in the original.
    """
    tensors = random_values(wespeaker_shapes(config), seed=5)
    dead, flat = slice(0, 64), slice(64, 70)
    tensors["conv.weight"][dead], tensors["conv.bias"][dead] = 0, -1
    tensors["conv.weight"][flat] *= 1e-3
    tensors["conv.bias"][flat] = loudness
    if config.pooling in ("attentive", "mean_std"):
        for part in (dead, flat):
            start = part.start + config.mfa_channels
            tensors["bn.running_mean"][start : start + 6] = 0
            tensors["bn.running_var"][start : start + 6] = 1e-4
    for name in tensors:
        if name.endswith("3.linear1.weight"):
            tensors[name] *= np.float32(0.05)  # unscaled gates would saturate
    return tensors


@functools.cache
def make_models(width: int, kind: str, loudness: float = CALM) -> tuple:
    """Returns a configuration, the original with random weights, and variables converted from the same tensors."""
    pooling, glob, emb_bn = NAMES[kind]
    ecapa = dataclasses.replace(
        PRESET.ecapa, channels=(width,) * 4, pooling=pooling, global_context=glob, embedding_norm=emb_bn
    )
    config = dataclasses.replace(PRESET, ecapa=ecapa)
    tensors = hard_tensors(ecapa, loudness)
    network = wespeaker_class()(
        channels=width,
        feat_dim=80,
        embed_dim=192,
        pooling_func=POOLINGS[pooling],
        global_context_att=glob,
        emb_bn=emb_bn,
    ).eval()
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=True)
    assert wespeaker.infer(tensors, ecapa) == ecapa
    variables, _ = apply_rules(wespeaker.rules(ecapa), wespeaker.FAMILY.ignored, tensors, functional.abstract(config))
    return config, network, variables


def has_counterpart(name: str, module: Any) -> bool:
    """Returns whether this library has a corresponding layer."""
    return bool(re.fullmatch(r"layer1|layer\d|layer\d\.se_res2block\.\d|pool|conv", name))


def run_layer(network: EcapaTdnn, name: str, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Runs our layer with an original's name on [1, T, C]."""
    if name == "layer1":
        return network.stem(x, mask)
    if name == "conv":
        return network.mfa.conv(x, mask)
    if name == "pool":
        return network.pooling(x, mask)[:, None]
    block = getattr(network, f"block_{int(name[5]) - 2}")
    if name.endswith(("0", "1", "2")) and "." in name:
        return (block.tdnn_in, block.res2, block.tdnn_out)[int(name[-1])](x, mask)
    if "." in name:
        return x * block.se(masked_mean(x, mask))[:, None]
    return block(x, mask)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def replay(config: EcapaConfig, variables: dict, inputs: dict[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
    graph, _, _ = nnx.split(nnx.eval_shape(lambda: EcapaTdnn(config, rngs=nnx.Rngs(0))), nnx.Param, nnx.BatchStat)
    network = nnx.merge(graph, variables["params"], variables["batch_stats"])
    return {name: run_layer(network, name, x, mask) for name, x in inputs.items()}


def pad_frames(x: np.ndarray) -> np.ndarray:
    """Pads [T, C] to [1, SIZE, C]."""
    return np.concatenate([x, np.full((SIZE - len(x), x.shape[1]), 1e3, x.dtype)])[None]


def layer_errors(config: EcapaConfig, variables: dict, trace: Trace, frames: int) -> dict[str, float]:
    """Returns each layer's worst error, divided by its largest value, for the original's input in a padded batch."""
    inputs = {name: pad_frames(x) for name, x in trace.inputs.items()}
    outputs = replay(config, variables, inputs, np.arange(SIZE)[None] < frames)
    errors = {}
    for name, theirs in trace.outputs.items():
        theirs = theirs[None] if theirs.ndim == 1 else theirs
        errors[name] = parity.relative_error(np.asarray(outputs[name][0, : len(theirs)]), theirs)
    return errors


CASES = [
    *(("ASTP GLOB", 64, frames, "speech_1") for frames in (5, 298)),
    *(("ASTP GLOB", 64, 298, signal) for signal in ("clipped", "zeros_inside", "wide_range")),
    ("TSTP", 64, 30, "silence"),
    *((name, 64, 30, "speech_2") for name in ("ASTP", "ASTP GLOB bn2", "TSTP", "TAP", "TSDP")),
    ("TAP", 64, 1, "speech_2"),
    ("ASTP GLOB", 512, 298, "speech_1"),
    ("ASTP GLOB", 1024, 298, "speech_3"),
]
"""For two frames and for silence, the attention's moment form is only rounding error; the test below uses float64."""


@pytest.mark.parametrize(("kind", "width", "frames", "signal"), CASES)
def test_features_layers_and_embedding_equal_wespeaker(
    kind: str, width: int, frames: int, signal: str, record_property: Callable[[str, object], None]
) -> None:
    config, network, variables = make_models(width, kind)
    waveform = parity.sound(signal, minimum_samples(config.fbank, frames) + 77)
    given = their_features(waveform)
    assert given.shape == (frames, 80)
    features, _ = FBANK(config.fbank, waveform[None], np.array([len(waveform)], np.int32))
    ours, original = (parity.feature_error(config.fbank, each, waveform) for each in (np.asarray(features[0]), given))
    theirs, trace = traced(network, given, has_counterpart)
    layers = layer_errors(config.ecapa, variables, trace, frames)
    worst = max(layers, key=layers.__getitem__)
    embeddings = embedded(config, variables, waveform)
    row = {"family": f"wespeaker {kind}", "width": width, "frames": frames, "signal": signal}
    row |= {"features": ours.worst, "their_features": original.worst}
    row |= {"features_rms": ours.rms, "their_features_rms": original.rms, "worst_layer": worst, "layer": layers[worst]}
    row |= {name: parity.relative_error(mine, theirs) for name, mine in embeddings.items()}
    row["cosine"] = max(1 - parity.cosine(mine, theirs) for mine in embeddings.values())
    record_property("parity", row)
    assert ours.above_floor <= parity.FEATURE_BOUND
    assert ours.rms <= max(2 * original.rms, 5e-6)
    assert max(layers.values()) <= parity.LAYER_BOUND
    for name, mine in embeddings.items():
        assert parity.same_embedding(mine, theirs), name


def embedded(config: ModelConfig, variables: dict, waveform: np.ndarray) -> dict[str, np.ndarray]:
    alone = EMBED(config, variables, waveform[None], np.array([len(waveform)], np.int32))
    mates = [parity.noise(functional.minimum_samples(config)), waveform, parity.sound("speech_3", 20000)]
    pad_frames = EMBED(config, variables, *parity.pad_batch(mates, 50000))
    return {"alone": np.asarray(alone[0]), "padded": np.asarray(pad_frames[1])}


HARD = [
    *((frames, "speech_1") for frames in (2, 3, 5, 298)),
    *((frames, "silence") for frames in (2, 30, 298)),
    *((298, signal) for signal in ("zeros_inside", "wide_range")),
]
DOUBLE_BOUND = 1e-9


@pytest.mark.parametrize("kind", ["ASTP GLOB", "ASTP"])
def test_difference_to_the_original_is_only_rounding(kind: str) -> None:
    """Tests loud constant channels, two frames and silence, where both sides are equal in float64.

    In float32, both sides have large and different rounding errors. Over all inputs, ours are at most twice theirs.
    """
    config, network, variables = make_models(64, kind, LOUD)
    double = copy.deepcopy(network).double()
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    errors = []
    for frames, signal in HARD:
        given = their_features(parity.sound(signal, minimum_samples(config.fbank, frames) + 77))
        theirs, _ = traced(network, given, has_counterpart)
        truth, trace = traced(double, given.astype(np.float64), has_counterpart)
        mask = np.arange(SIZE)[None] < frames
        with jax.enable_x64(True):
            layers = layer_errors(config.ecapa, wide, trace, frames)
            exact, _ = APPLY(config.ecapa, wide, pad_frames(given.astype(np.float64)), mask)
        assert exact.dtype == truth.dtype == np.float64
        ours, _ = APPLY(config.ecapa, variables, pad_frames(given), mask)
        errors.append([parity.relative_error(np.asarray(each), truth) for each in (ours[0], theirs)])
        worst = max(layers, key=layers.__getitem__)
        embedding = parity.relative_error(np.asarray(exact[0]), truth)
        print(f"{kind} T={frames} {signal}: float64 {worst} {layers[worst]:.1e} embedding {embedding:.1e}", end=", ")
        print("float32 ours {:.1e} theirs {:.1e}".format(*errors[-1]))
        assert layers[worst] <= DOUBLE_BOUND
        assert embedding <= DOUBLE_BOUND
    mine, original = np.sqrt(np.mean(np.square(errors), axis=0))
    print(f"{kind}: float32 RMS against float64, ours {mine:.1e} theirs {original:.1e}")
    assert mine <= 2 * original


def test_helper_shapes_equal_those_of_the_class() -> None:
    """Compares the helper's table with the original's state dict at the published sizes."""
    for changes in ({}, {"embedding_norm": True}, {"global_context": False}):
        config = dataclasses.replace(PRESET.ecapa, **changes)
        with torch.device("meta"):
            network = wespeaker_class()(
                channels=1024, global_context_att=config.global_context, emb_bn=config.embedding_norm
            )
        theirs = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        assert wespeaker_shapes(config) == {n: s for n, s in theirs.items() if not n.endswith("num_batches_tracked")}


def test_every_possible_pooling_is_supported() -> None:
    """This library supports every pooling of WeSpeaker that its ECAPA_TDNN can use."""
    network = wespeaker_class()
    layers = pytest.importorskip("wespeaker.models.pooling_layers")
    shipped = {
        name for name, value in vars(layers).items() if isinstance(value, type) and issubclass(value, torch.nn.Module)
    }
    assert shipped == {*wespeaker.POOLINGS, "ASP"}
    with pytest.raises(TypeError):
        network(channels=16, pooling_func="ASP")


def test_files_written_by_the_trainer_are_converted(tmp_path: Path) -> None:
    """PyTorch writes the file, as in WeSpeaker's trainer."""
    from ecapa_jax.convert.run import convert

    config, network, _ = make_models(64, "ASTP GLOB")
    state = {**network.state_dict(), "projection.weight": torch.ones(6, 192)}
    torch.save(state, tmp_path / "avg_model.pt")
    bundle = convert(tmp_path)
    assert bundle.config == config
    waveform = parity.sound("speech_1", 48000)
    theirs, _ = traced(network, their_features(waveform), has_counterpart)
    assert parity.same_embedding(embedded(config, bundle.variables, waveform)["alone"], theirs)
    assert jnp.asarray(bundle.variables["params"]["projection"]["bias"]).shape == (192,)
