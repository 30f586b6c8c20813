"""Tests against the PyTorch originals: features, every layer in order, and the embedding of a waveform."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecapa_jax import functional
from ecapa_jax.config import EcapaConfig, FbankConfig, ModelConfig
from ecapa_jax.convert.rules import apply_rules
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.errors import ConversionError
from ecapa_jax.features.fbank import fbank
from ecapa_jax.features.frames import minimum_samples
from ecapa_jax.masks import masked_mean
from ecapa_jax.nn.ecapa import EcapaTdnn
from ecapa_jax.presets import PRESETS
from helpers import parity
from helpers.traces import Trace, traced
from helpers.weights import random_tensors, small_config

torch = pytest.importorskip("torch")
speakerlab = pytest.importorskip("speakerlab.models.ecapa_tdnn.ECAPA_TDNN")
speakerlab_processor = pytest.importorskip("speakerlab.process.processor")
speechbrain = pytest.importorskip("speechbrain.lobes.models.ECAPA_TDNN")
speechbrain_features = pytest.importorskip("speechbrain.lobes.features")
speechbrain_processing = pytest.importorskip("speechbrain.processing.features")

pytestmark = pytest.mark.peers

EMBED = jax.jit(functional.embed, static_argnums=0)
APPLY = jax.jit(functional.apply, static_argnums=0)
FBANK = jax.jit(fbank, static_argnums=0)


# The originals


@functools.cache
def _speechbrain_front_end(n_mels: int) -> Callable[[Any], Any]:
    features = speechbrain_features.Fbank(n_mels=n_mels)
    normalize = speechbrain_processing.InputNormalization(norm_type="sentence", std_norm=False)
    return lambda waveform: normalize(features(waveform[None]), torch.ones(1))[0]


def their_features(family: str, config: FbankConfig, waveform: np.ndarray) -> np.ndarray:
    """Computes features [T, M] of a waveform [S] with the family's own code."""
    if family == "3dspeaker":
        extract = speakerlab_processor.FBank(config.n_mels, config.sample_rate, mean_nor=True)
    else:
        extract = _speechbrain_front_end(config.n_mels)
    with torch.no_grad():
        return extract(torch.from_numpy(waveform)).numpy()


def their_network(family: str, config: EcapaConfig, **arguments: Any) -> Any:
    peer = speakerlab if family == "3dspeaker" else speechbrain
    if config.activation == "leaky_relu":
        arguments["activation"] = torch.nn.LeakyReLU
    return peer.ECAPA_TDNN(
        config.n_mels,
        channels=[*config.channels, config.mfa_channels],
        kernel_sizes=[*config.kernel_sizes, config.mfa_kernel_size],
        dilations=[1, *config.dilations, config.mfa_dilation],
        lin_neurons=config.embedding_dim,
        attention_channels=config.attention_channels,
        res2net_scale=config.res2_scale,
        se_channels=config.se_channels,
        global_context=config.global_context,
        **arguments,
    ).eval()


def make_pair(family: str, config: ModelConfig) -> tuple[Any, dict]:
    """Returns the original with random weights, loaded strictly, and variables converted from the same tensors."""
    tensors = random_tensors(config.ecapa, seed=3)
    for name in tensors:
        if name.endswith("se_block.conv1.conv.weight"):
            # Without scaling, the large activations of random weights would saturate the gates and hide errors.
            tensors[name] *= np.float32(0.02)
    network = their_network(family, config.ecapa)
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=True)
    variables, _ = apply_rules(sb_layout.rules(config.ecapa), sb_layout.IGNORED, tensors, functional.abstract(config))
    return network, variables


@functools.cache
def make_models(family: str, width: int) -> tuple[ModelConfig, Any, dict]:
    config = small_config(family, width)
    return config, *make_pair(family, config)


# Layer by layer


def is_own_layer(name: str, module: Any) -> bool:
    """Returns whether a layer belongs to the original itself, and not to torch."""
    return not type(module).__module__.startswith("torch.") and name not in ("", "asp.tdnn")


OURS = (
    (r"^blocks\.0", "stem"),
    (r"^blocks\.(\d+)", "block_{0}"),
    (r"tdnn1", "tdnn_in"),
    (r"tdnn2", "tdnn_out"),
    (r"res2net_block\.blocks\.(\d+)", r"res2.chunk_\1"),
    (r"res2net_block", "res2"),
    (r"se_block\.conv1", "se.squeeze"),
    (r"se_block\.conv2", "se.excite"),
    (r"se_block", "se"),
    (r"asp\.tdnn\.conv", "pooling.hidden"),
    (r"asp\.tdnn\.norm", "pooling.norm"),
    (r"asp\.conv", "pooling.logits"),
    (r"^asp$", "pooling"),
    (r"^asp_bn", "pooled_norm"),
    (r"^fc", "projection"),
)


def to_our_name(name: str) -> str:
    """Converts `blocks.2.tdnn1.conv` to `block_1.tdnn_in.conv`."""
    if match := re.match(r"blocks\.([1-9]\d*)", name):
        name = f"block_{int(match[1]) - 1}{name[match.end() :]}"
    for pattern, ours in OURS:
        name = re.sub(pattern, ours, name)
    return name


def run_layer(network: EcapaTdnn, name: str, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Runs our layer with an original's name on [1, T, C]; layers without a time axis get one frame."""
    layer = functools.reduce(getattr, to_our_name(name).split("."), network)
    if name == "asp":
        return layer(x, mask)[:, None]
    if name.endswith("se_block"):
        return x * layer(masked_mean(x, mask))[:, None]
    return layer(x, mask if x.shape[1] > 1 else jnp.ones((1, 1), bool))


# Optimization is disabled, because this program contains fifty layers and compiles for every shape.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def replay(config: EcapaConfig, variables: dict, inputs: dict[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
    graph, _, _ = nnx.split(nnx.eval_shape(lambda: EcapaTdnn(config, rngs=nnx.Rngs(0))), nnx.Param, nnx.BatchStat)
    network = nnx.merge(graph, variables["params"], variables["batch_stats"])
    return {name: run_layer(network, name, x, mask) for name, x in inputs.items()}


def layer_errors(config: EcapaConfig, variables: dict, trace: Trace, frames: int) -> dict[str, float]:
    """Returns each layer's worst error, divided by its largest value, for the original's input in a padded batch."""
    size = 304 if frames <= 298 else frames + 6
    inputs = {name: _padded(x, size) if len(x) > 1 else x[None] for name, x in trace.inputs.items()}
    outputs = replay(config, variables, inputs, np.arange(size)[None] < frames)
    return {
        name: parity.relative_error(np.asarray(outputs[name][0, : len(theirs)]), theirs)
        for name, theirs in trace.outputs.items()
    }


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([x, np.full((size - len(x), x.shape[1]), 1e3, np.float32)])[None]


# Tests


SHORT, LONG = ("speech_1", "clipped", "silence"), ("speech_1", "speech_2", "clipped", "zeros_inside", "silence")
CASES = [
    *((64, frames, signal) for frames in (5, 6, 30) for signal in SHORT),
    *((64, frames, signal) for frames in (298, 1500) for signal in (*LONG, "wide_range")),
    *((512, 5, signal) for signal in SHORT),
    *((512, 298, signal) for signal in LONG),
    (512, 1500, "speech_2"),
    *((1024, 5, signal) for signal in SHORT),
    *((1024, 298, signal) for signal in LONG),
    (1024, 1500, "speech_3"),
]


LANGUAGE_CASES = [
    *((64, frames, signal) for frames in (5, 298) for signal in SHORT),
    *((64, 298, signal) for signal in ("zeros_inside", "wide_range")),
    (512, 298, "speech_2"),
]
FAMILY_CASES = [
    *((family, *case) for family in parity.GOLDEN_SEEDS for case in CASES),
    *(("speechbrain-langid", *case) for case in LANGUAGE_CASES),
]


@pytest.mark.parametrize(("family", "width", "frames", "signal"), FAMILY_CASES)
def test_features_layers_and_embedding_equal_the_original(
    family: str, width: int, frames: int, signal: str, record_property: Callable[[str, object], None]
) -> None:
    config, network, variables = make_models(family, width)
    # The length is odd, and 77 samples remain after the last full frame.
    waveform = parity.sound(signal, minimum_samples(config.fbank, frames) + 77)
    given = their_features(family, config.fbank, waveform)
    assert given.shape == (frames, config.fbank.n_mels)
    theirs, trace = traced(network, given, is_own_layer)
    features = _features(config.fbank, waveform, given)
    # The longest and widest case tests only the embedding, because its layers would take half a minute.
    layers = layer_errors(config.ecapa, variables, trace, frames) if width * frames < 1e6 else {"not run": 0.0}
    embeddings = _embeddings(config, variables, waveform)
    worst = max(layers, key=layers.__getitem__)
    row = {"family": family, "width": width, "frames": frames, "signal": signal, **features}
    row |= {"worst_layer": worst, "layer": layers[worst]}
    row |= {name: parity.relative_error(ours, theirs) for name, ours in embeddings.items()}
    row["cosine"] = max(1 - parity.cosine(ours, theirs) for ours in embeddings.values())
    record_property("parity", row)
    assert row["features_rms"] <= max(2 * row["their_features_rms"], 5e-6)
    assert layers[worst] <= parity.LAYER_BOUND
    for name, ours in embeddings.items():
        assert parity.same_embedding(ours, theirs), name


def _features(config: FbankConfig, waveform: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Returns the errors of both libraries against the float64 oracle."""
    features, _ = FBANK(config, waveform[None], np.array([len(waveform)], np.int32))
    ours, original = (parity.feature_error(config, each, waveform) for each in (np.asarray(features[0]), theirs))
    assert ours.above_floor <= parity.FEATURE_BOUND
    worst = {"features": ours.worst, "their_features": original.worst}
    return worst | {"features_rms": ours.rms, "their_features_rms": original.rms}


def _embeddings(config: ModelConfig, variables: dict, waveform: np.ndarray) -> dict[str, np.ndarray]:
    alone = EMBED(config, variables, waveform[None], np.array([len(waveform)], np.int32))
    other = parity.sound("speech_3", len(waveform) // 2 + 2000)
    mates = [parity.noise(functional.minimum_samples(config)), waveform, other]
    padded = EMBED(config, variables, *parity.pad_batch(mates, 50000 if len(waveform) < 50000 else 244001))
    return {"alone": np.asarray(alone[0]), "padded": np.asarray(padded[1])}


@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_features_are_as_exact_as_those_of_the_original(family: str) -> None:
    """Both are compared with float64. The worst cell of one recording is random, so many recordings are compared."""
    config = PRESETS[family].fbank
    speech = [parts[start : start + 63777] for parts in parity.speech() for start in (0, 90000, 180000)]
    others = [parity.sound(name, 63777) for name in ("clipped", "zeros_inside", "noise", "wide_range", "silence")]
    waveforms = [*speech, *others, np.full(63777, 0.5, np.float32), parity.impulse(63777)]
    features, _ = FBANK(config, *parity.pad_batch(waveforms))
    ours = [parity.feature_error(config, row, waveform) for row, waveform in zip(features, waveforms, strict=True)]
    theirs = [
        parity.feature_error(config, their_features(family, config, waveform), waveform) for waveform in waveforms
    ]
    worst = [max(error.worst for error in errors) for errors in (ours, theirs)]
    print(f"{family}: worst error against float64, ours {worst[0]:.1e}, theirs {worst[1]:.1e}")
    assert worst[0] <= 2 * worst[1]
    assert max(error.above_floor for error in ours) <= parity.FEATURE_BOUND
    for mine, original in zip(ours, theirs, strict=True):
        assert mine.rms <= max(2 * original.rms, 5e-6)


BOTH = {
    "no_context": {"global_context": False},
    "other_bottlenecks": {"attention_channels": 96, "se_channels": 24, "embedding_dim": 100, "n_mels": 60},
    "res2_scale_4": {"res2_scale": 4},
    "res2_scale_16": {"res2_scale": 16},
    "mfa_kernel_3": {"mfa_kernel_size": 3, "mfa_dilation": 2},
    "other_kernels": {"kernel_sizes": (3, 5, 3, 1), "dilations": (1, 5, 2)},
    "leaky": {"activation": "leaky_relu", "activation_scope": "outer"},
    "two_blocks": {"channels": (64,) * 3, "kernel_sizes": (5, 3, 3), "dilations": (2, 3), "mfa_channels": 128},
    "four_blocks": {
        "channels": (64,) * 5,
        "kernel_sizes": (5, 3, 3, 3, 3),
        "dilations": (2, 3, 4, 5),
        "mfa_channels": 256,
    },
    "other_stem": {"channels": (48, 64, 64, 64)},
}
VARIANTS = [
    *((family, name, change) for name, change in BOTH.items() for family in parity.GOLDEN_SEEDS),
    # SpeechBrain's class needs equal channels
    ("3dspeaker", "uneven_blocks", {"channels": (48, 64, 32, 96), "mfa_channels": 192}),
    ("speechbrain", "free_mfa", {"mfa_channels": 100}),  # 3D-Speaker's class needs 3 C
]


@pytest.mark.parametrize(("family", "change"), [pytest.param(f, c, id=f"{f}-{n}") for f, n, c in VARIANTS])
def test_networks_of_other_shapes_equal_the_original(family: str, change: dict[str, Any]) -> None:
    """The test compares embedding, layers and inferred config of networks with other shapes than the published ones."""
    base = small_config(family, 64).ecapa
    network_config = dataclasses.replace(base, **change)
    front_end = dataclasses.replace(PRESETS[family].fbank, n_mels=network_config.n_mels)
    network, variables = make_pair(family, ModelConfig(fbank=front_end, ecapa=network_config))
    features = 3 * parity.noise(45 * network_config.n_mels, seed=1).reshape(45, -1)
    theirs, trace = traced(network, features, is_own_layer)
    ours, _ = APPLY(network_config, variables, features[None], np.ones((1, 45), bool))
    print(f"error {parity.relative_error(ours[0], theirs):.1e}")
    assert parity.same_embedding(ours[0], theirs)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    assert sb_layout.infer(tensors, _without_inferred_fields(network_config)) == network_config
    if change.keys() & {"global_context", "mfa_kernel_size"} or len(set(network_config.channels)) > 1:
        assert max(layer_errors(network_config, variables, trace, 45).values()) <= parity.LAYER_BOUND


def _without_inferred_fields(config: EcapaConfig) -> EcapaConfig:
    """Resets the fields of a config that the tensors' shapes determine."""
    ones = (1,) * len(config.channels)
    names = ("n_mels", "res2_scale", "se_channels", "attention_channels", "mfa_channels", "embedding_dim")
    sizes = dict.fromkeys((*names, "mfa_kernel_size"), 1)
    return dataclasses.replace(config, channels=ones, kernel_sizes=ones, global_context=True, **sizes)


@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_grouped_convolutions_are_refused(family: str) -> None:
    """The originals have `groups`, which neither the paper nor any published model uses, so converting must fail."""
    config = small_config(family, 64)
    network = their_network(family, config.ecapa, groups=[1, 2, 2, 2, 1])
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    ecapa = sb_layout.infer(tensors, config.ecapa)
    with pytest.raises(ConversionError, match=r"tdnn1\.conv\.conv\.weight has shape"):
        apply_rules(sb_layout.rules(ecapa), sb_layout.IGNORED, tensors, functional.abstract(config))
