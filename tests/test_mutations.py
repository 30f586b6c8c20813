"""The golden values notice each flag: a family's model with one flag changed must fail the parity check.

A parity test proves only as much as it would refuse. Here every field of the configuration is changed, one at a time,
to each value that some family has, and the check of test_golden.py must say no.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import typing
from typing import Any, Literal

import jax
import numpy as np
import pytest
import soundfile

from ecapa_jax import functional
from ecapa_jax.audio.load import load_audio
from ecapa_jax.config import EcapaConfig, FbankConfig, ModelConfig, StdConfig
from ecapa_jax.convert.rules import apply_rules
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.errors import ConversionError
from ecapa_jax.features.fbank import fbank, seen_mask
from ecapa_jax.presets import PRESETS
from helpers import parity
from helpers.weights import variables_of

Change = dict[str, Any]

NETWORK: dict[str, Change] = {
    "padding=zeros": {"padding": "zeros"},
    "block_input=sum": {"block_input": "sum"},
    "multiscale=last": {"multiscale": "last"},
    "dilations=1,1,1": {"dilations": (1, 1, 1)},
    "dilations=2,3,5": {"dilations": (2, 3, 5)},
    "attention_hidden=relu_bn": {"attention_hidden": "relu_bn"},
    "context_std.form=moment": {"context_std": StdConfig(form="moment")},
    "context_std.unbiased": {"context_std": StdConfig(unbiased=True)},
    "context_std.epsilon=1e-4": {"context_std": StdConfig(epsilon=1e-4)},
    "context_std.epsilon=1e-7, add": {"context_std": StdConfig(epsilon=1e-7, epsilon_mode="add")},
    "context_std.maximum=1": {"context_std": StdConfig(maximum=1.0)},
    "pooled_std.form=moment": {"pooled_std": StdConfig(form="moment")},
    "pooled_std.epsilon=1e-4": {"pooled_std": StdConfig(epsilon=1e-4)},
    "pooled_std.epsilon=1e-7": {"pooled_std": StdConfig(epsilon=1e-7)},
    "pooled_std.epsilon=1e-10": {"pooled_std": StdConfig(epsilon=1e-10)},
    "pooled_std.epsilon=1e-7, add": {"pooled_std": StdConfig(epsilon=1e-7, epsilon_mode="add")},
    "pooled_std.maximum=1": {"pooled_std": StdConfig(maximum=1.0)},
    "activation=leaky_relu": {"activation": "leaky_relu"},
    "activation=leaky_relu, outer": {"activation": "leaky_relu", "activation_scope": "outer"},
    "norm_epsilon=1e-3": {"norm_epsilon": 1e-3},
    "norm_epsilon=1e-6": {"norm_epsilon": 1e-6},
}
"""Flags that the tensors can't tell: only numbers notice."""

NO_NORM = {"norm": "none", "mfa_norm": False}
STRUCTURE: dict[str, Change] = {
    "n_mels=60": {"n_mels": 60},
    "channels=96": {"channels": (96,) * 4},
    "channels of the stem=32": {"channels": (32, 64, 64, 64)},
    "kernel_sizes=3,3,3,3": {"kernel_sizes": (3, 3, 3, 3)},
    "res2_scale=4": {"res2_scale": 4},
    "se_channels=64": {"se_channels": 64},
    "attention_channels=256": {"attention_channels": 256},
    "mfa_channels=96": {"mfa_channels": 96},
    "mfa_kernel_size=3": {"mfa_kernel_size": 3},
    "embedding_dim=512": {"embedding_dim": 512},
    "multiscale=grouped": {"multiscale": "grouped"},
    "norm=none": {**NO_NORM, "attention_hidden": "relu_tanh"},
    "se_norm": {"se_norm": True},
    "mfa_norm off": {"mfa_norm": False},
    "embedding_norm": {"embedding_norm": True},
    "attention_hidden=tanh": {"attention_hidden": "tanh"},
    "attention_hidden=relu_tanh": {"attention_hidden": "relu_tanh"},
    "global_context off": {"global_context": False},
}
"""What changes the set or the shapes of the tensors: the converter refuses the checkpoint."""

FRONT_END: dict[str, Change] = {
    "sample_rate=16100": {"sample_rate": 16100},
    "waveform_scale=1": {"waveform_scale": 1.0},
    "waveform_scale=32768": {"waveform_scale": 32768.0},
    "frame_length=399": {"frame_length": 399},
    "frame_shift=161": {"frame_shift": 161},
    **{
        f"framing={name}": {"framing": name}
        for name in ("snip_edges", "kaldi_reflect", "center_zeros", "center_zeros_floor")
    },
    "framing=center_reflect": {"framing": "center_reflect"},
    **{f"window={name}": {"window": name} for name in ("povey", "hamming", "hann")},
    "window_periodic": {"window_periodic": True},
    "window_periodic off": {"window_periodic": False},
    "remove_dc": {"remove_dc": True},
    "remove_dc off": {"remove_dc": False},
    **{f"preemphasis={value}": {"preemphasis": value} for value in (0.0, 0.95, 0.97)},
    "preemphasis_mode=signal_reflect": {"preemphasis": 0.97, "preemphasis_mode": "signal_reflect"},
    "preemphasis_mode=signal_zero": {"preemphasis": 0.97, "preemphasis_mode": "signal_zero"},
    "fft_size=400": {"fft_size": 400},
    "fft_size=512": {"fft_size": 512},
    "mel_scale=slaney": {"mel_scale": "slaney"},
    **{f"mel_shape={name}": {"mel_shape": name} for name in ("mel", "hz", "hz_symmetric", "hz_area")},
    "f_min=0": {"f_min": 0.0},
    "f_min=20": {"f_min": 20.0},
    "f_max=7600": {"f_max": 7600.0},
    **{f"floor={value}": {"floor": value} for value in (2.0**-23, 2.0**-24, 1e-10, 1e-6)},
    "floor_mode=add": {"floor_mode": "add"},
    "log=ln": {"log": "ln"},
    "log=db": {"log": "db"},
    "top_db=80": {"top_db": 80.0},
    "top_db=60": {"top_db": 60.0},
    "top_db off": {"top_db": None},
    **{f"normalization={name}": {"normalization": name} for name in ("none", "mean_std", "instance")},
    "pad_to=16": {"pad_to": 16},
}
"""Each value that a family has, and a near one. What a family has already is left out for it."""

NO_EFFECT: dict[str, tuple[Change, Change, str]] = {
    "mel_scale=htk": ({"mel_scale": "htk"}, {}, "the two scales are proportional: the same edges in Hz"),
    "mel_scale=kaldi": ({"mel_scale": "kaldi"}, {}, "as above"),
    "std.epsilon_mode=add": (
        {},
        {name: StdConfig(epsilon_mode="add") for name in ("context_std", "pooled_std")},
        "at 1e-12 both are zero, or the same in float32",
    ),
    "activation_scope=outer": ({}, {"activation_scope": "outer"}, "both scopes have ReLU"),
    "mfa_dilation=3": ({}, {"mfa_dilation": 3}, "one tap has no dilation"),
    "norm_momentum=0.5": ({}, {"norm_momentum": 0.5}, "of training"),
}
"""What can't matter to these two families, with the reason; the numbers must agree that it does not."""

ELSEWHERE = {
    "EcapaConfig.pooling": "the tensors or the configuration tell: test_golden_families.py, convert/test_wespeaker.py",
    "FbankConfig.channel": "where a file is read: test_channel_rule below",
    "FbankConfig.n_mels": "must equal the network's, which the tensors tell",
    "FbankConfig.mel_source": "where the matrix comes from, not what it is",
}

SIGNALS = ("zeros_inside", "clipped", "silence", "faint")
FRAMES = 192
"""One shape for all features, so that the unchanged network is compiled once."""

# Not optimised: what is compiled here runs once.
QUICK = {"xla_backend_optimization_level": 0}
FBANK = jax.jit(fbank, static_argnums=0, compiler_options=QUICK)
APPLY = jax.jit(functional.apply, static_argnums=0, compiler_options=QUICK)


@functools.cache
def _variables(family: str) -> dict[str, Any]:
    config, tensors = parity.golden_model(family)
    return variables_of(config.ecapa, tensors)


def _errors(family: str, front_end: Change, network: Change) -> tuple[float, float]:
    """Worst errors of features and of embeddings, with these changes, against the family's golden values."""
    config, _ = parity.golden_model(family)
    waveforms = [parity.golden_signals()[signal] for signal in SIGNALS]
    changed = dataclasses.replace(config.fbank, **front_end)
    features, mask = map(np.asarray, FBANK(changed, *parity.pad_batch(waveforms)))
    seen = np.asarray(seen_mask(changed, mask))
    rest = FRAMES - features.shape[1]
    embeddings, _ = APPLY(
        dataclasses.replace(config.ecapa, **network),
        _variables(family),
        np.pad(features, ((0, 0), (0, rest), (0, 0))),
        np.pad(mask, ((0, 0), (0, rest))),
        seen=np.pad(seen, ((0, 0), (0, rest))),
    )
    worst = [0.0, 0.0]
    for row, signal in enumerate(SIGNALS):
        alone = features[row, : mask[row].sum()]
        worst[0] = max(worst[0], parity.golden_feature_error(config.fbank, family, signal, alone))
        theirs = parity.golden()[f"{family}/{signal}/embedding"]
        worst[1] = max(worst[1], parity.relative_error(np.asarray(embeddings[row]), theirs))
    print(f"{family:<12} features {worst[0]:.1e} embedding {worst[1]:.1e}", end=" ")
    return worst[0], worst[1]


@pytest.mark.parametrize("name", NETWORK)
@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_network_flag_is_noticed(family: str, name: str) -> None:
    _, embedding = _errors(family, {}, NETWORK[name])
    print(name)
    assert embedding > parity.EMBEDDING_BOUND


@pytest.mark.parametrize("name", STRUCTURE)
def test_structure_is_noticed_by_the_converter(name: str) -> None:
    config, tensors = parity.golden_model("3dspeaker")
    network = dataclasses.replace(config.ecapa, **STRUCTURE[name])
    changed = ModelConfig(fbank=dataclasses.replace(config.fbank, n_mels=network.n_mels), ecapa=network)
    with pytest.raises(ConversionError, match="does not fit"):
        apply_rules(sb_layout.rules(network), sb_layout.IGNORED, tensors, functional.abstract(changed))


def _front_end_cases() -> list[tuple[str, str]]:
    own = {family: dataclasses.asdict(PRESETS[family].fbank) for family in parity.GOLDEN_SEEDS}
    return [
        (family, name)
        for family in parity.GOLDEN_SEEDS
        for name, change in FRONT_END.items()
        if own[family] != own[family] | change
    ]


@pytest.mark.parametrize(("family", "name"), _front_end_cases())
def test_front_end_flag_is_noticed(family: str, name: str) -> None:
    """By the features, and by the embedding alone as well."""
    features, embedding = _errors(family, FRONT_END[name], {})
    print(name)
    assert features > parity.FEATURE_BOUND or name == "pad_to=16"  # only the convolutions see blank frames
    assert embedding > parity.EMBEDDING_BOUND


@pytest.mark.parametrize("name", NO_EFFECT)
@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_what_has_no_effect_has_none(family: str, name: str) -> None:
    """If one of these fails, it matters now: it belongs to the tables above."""
    front_end, network, reason = NO_EFFECT[name]
    features, embedding = _errors(family, front_end, network)
    print(f"{name}: {reason}")
    assert features <= parity.FEATURE_BOUND
    assert embedding <= parity.EMBEDDING_BOUND


@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_channel_rule(family: str) -> None:
    """Of a stereo file in which only the family's own rule gives the golden waveform."""
    config = PRESETS[family].fbank
    waveform, other = parity.golden_signals()["zeros_inside"], parity.noise(30000)
    stereo = (waveform, other) if config.channel == "first" else (waveform + other, waveform - other)
    file = io.BytesIO()
    soundfile.write(file, np.stack(stereo, 1), parity.RATE, format="WAV", subtype="FLOAT")
    errors = {}
    for channel in ("first", "mean"):
        heard = load_audio(file.getvalue(), sample_rate=None, target_rate=parity.RATE, channel=channel)
        features, _ = FBANK(config, *parity.pad_batch([heard]))
        errors[channel] = parity.golden_feature_error(config, family, "zeros_inside", np.asarray(features[0]))
    print(family, errors)
    assert errors.pop(config.channel) <= parity.FEATURE_BOUND
    assert min(errors.values()) > parity.FEATURE_BOUND


def _tried() -> dict[str, set[Any]]:
    """`Class.field` -> values that some test above gives it."""
    tried: dict[str, set[Any]] = {name: set() for name in ELSEWHERE}
    networks = [*NETWORK.values(), *STRUCTURE.values(), *(network for _, network, _ in NO_EFFECT.values())]
    front_ends = [*FRONT_END.values(), *(front_end for front_end, _, _ in NO_EFFECT.values())]
    for class_name, changes in (("EcapaConfig", networks), ("FbankConfig", front_ends)):
        for field, value in (item for change in changes for item in change.items()):
            tried.setdefault(f"{class_name}.{field}", set()).add(value)
    stds = tried["EcapaConfig.context_std"] & tried["EcapaConfig.pooled_std"]
    stds |= {StdConfig(unbiased=True)}  # the weighted one has no unbiased form
    for std in stds:
        for field, value in dataclasses.asdict(std).items():
            if value != getattr(StdConfig(), field):
                tried.setdefault(f"StdConfig.{field}", set()).add(value)
    return tried


@pytest.mark.parametrize("cls", [FbankConfig, EcapaConfig, StdConfig])
def test_every_field_and_every_choice_is_tried(cls: type) -> None:
    """A new field or a new choice must enter a table here, or the list of what is tested elsewhere."""
    tried = _tried()
    for field, hint in typing.get_type_hints(cls).items():
        name = f"{cls.__name__}.{field}"
        assert name in tried, f"{name} is changed by no test"
        if typing.get_origin(hint) is Literal and name not in ELSEWHERE:
            default = getattr(cls(), field)
            assert {*tried[name], default} == set(typing.get_args(hint)), f"a choice of {name} is tried by no test"
