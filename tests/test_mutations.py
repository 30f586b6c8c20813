"""Tests that the golden values detect each flag: if one flag is changed, the parity check must fail.

A parity test is useful only if it fails for a wrong model. These tests change every field of the configuration, one at
a time, to each value that any family has, and expect the check of test_golden.py to fail. The model is the NumPy
oracle, which needs no compilation; test_fbank.py and test_network.py compare it with JAX for every flag. Only the flags
that change nothing but the rounding in float32 run in JAX, because the oracle computes in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import typing
from collections.abc import Iterator
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
from ecapa_jax.features.frames import seen_count
from ecapa_jax.presets import PRESETS
from helpers import oracle, parity
from helpers.weights import variables_of

Change = dict[str, Any]

NETWORK: dict[str, Change] = {
    "padding=zeros": {"padding": "zeros"},
    "block_input=sum": {"block_input": "sum"},
    "multiscale=last": {"multiscale": "last"},
    "dilations=1,1,1": {"dilations": (1, 1, 1)},
    "dilations=2,3,5": {"dilations": (2, 3, 5)},
    "attention_hidden=relu_bn": {"attention_hidden": "relu_bn"},
    "context_std.unbiased": {"context_std": StdConfig(unbiased=True)},
    "context_std.epsilon=1e-4": {"context_std": StdConfig(epsilon=1e-4)},
    "context_std.epsilon=1e-7, add": {"context_std": StdConfig(epsilon=1e-7, epsilon_mode="add")},
    "context_std.maximum=1": {"context_std": StdConfig(maximum=1.0)},
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
"""Flags that do not change the names or shapes of the tensors: only a numerical comparison detects them."""

ROUNDING: dict[str, Change] = {
    "context_std.form=moment": {"context_std": StdConfig(form="moment")},
    "pooled_std.form=moment": {"pooled_std": StdConfig(form="moment")},
}
"""Flags that change only the rounding."""

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
"""Flags that change the names or shapes of the tensors: the converter refuses the checkpoint."""

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
"""Every value that any family has, and values close to them. `_front_end_cases` omits a family's own values."""

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
"""Flags that can't change the result of these two families, with the reason; a test checks that they do not."""

ELSEWHERE = {
    "EcapaConfig.pooling": "the tensors or the configuration tell: test_golden_families.py, convert/test_wespeaker.py",
    "FbankConfig.channel": "a test of the channel rule below reads a file",
    "FbankConfig.n_mels": "must equal the network's, which the tensors tell",
    "FbankConfig.mel_source": "where the matrix comes from, not what it is",
}

SIGNALS = ("zeros_inside", "clipped", "silence", "faint")


_golden_model = functools.cache(parity.golden_model)


@functools.cache
def _features(config: FbankConfig, signal: str) -> np.ndarray:
    return oracle.fbank(config, parity.golden_signals()[signal])


def _errors(family: str, front_end: Change, network: Change) -> Iterator[tuple[float, float]]:
    """Yields for each signal the errors of the changed model's features and embedding against the golden values."""
    config, tensors = _golden_model(family)
    changed = dataclasses.replace(config.fbank, **front_end)
    model = oracle.Oracle(dataclasses.replace(config.ecapa, **network), tensors)
    for signal in SIGNALS:
        features = _features(changed, signal)
        model.real = len(features)
        blank = seen_count(changed, len(features)) - len(features)
        embedding = model(np.pad(features, ((0, blank), (0, 0))))
        feature_error = parity.golden_feature_error(config.fbank, family, signal, features)
        embedding_error = parity.relative_error(embedding, parity.golden()[f"{family}/{signal}/embedding"])
        print(f"{family:<12} {signal:<12} features {feature_error:.1e} embedding {embedding_error:.1e}")
        yield feature_error, embedding_error


def _within_bounds(family: str, front_end: Change, network: Change) -> bool:
    errors = _errors(family, front_end, network)
    return all(feature <= parity.FEATURE_BOUND and embedding <= parity.EMBEDDING_BOUND for feature, embedding in errors)


@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_unchanged_model_stays_within_the_bounds(family: str) -> None:
    assert _within_bounds(family, {}, {})


@pytest.mark.parametrize("name", NETWORK)
@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_changed_network_flag_exceeds_the_bound(family: str, name: str) -> None:
    assert any(embedding > parity.EMBEDDING_BOUND for _, embedding in _errors(family, {}, NETWORK[name]))


@pytest.mark.parametrize("name", ROUNDING)
@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_changed_rounding_exceeds_the_bound(family: str, name: str) -> None:
    config, tensors = _golden_model(family)
    rows = [_features(config.fbank, signal).astype(np.float32) for signal in SIGNALS]
    longest = max(map(len, rows))
    features = np.stack([np.pad(row, ((0, longest - len(row)), (0, 0))) for row in rows])
    mask = np.arange(longest) < np.array([[len(row)] for row in rows])
    # The program runs only once, so optimization would cost more than it saves.
    apply = jax.jit(functional.apply, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
    network = dataclasses.replace(config.ecapa, **ROUNDING[name])
    embeddings, _ = apply(network, variables_of(config.ecapa, tensors), features, mask)
    theirs = [parity.golden()[f"{family}/{signal}/embedding"] for signal in SIGNALS]
    worst = max(map(parity.relative_error, np.asarray(embeddings), theirs))
    print(f"{family:<12} embedding {worst:.1e} {name}")
    assert worst > parity.EMBEDDING_BOUND


@pytest.mark.parametrize("name", STRUCTURE)
def test_converter_refuses_changed_structure(name: str) -> None:
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
def test_changed_front_end_flag_exceeds_the_bound(family: str, name: str) -> None:
    """Both the features and the embedding exceed their bounds."""
    exceeded = [name == "pad_to=16", False]  # only the convolutions use blank frames
    for feature, embedding in _errors(family, FRONT_END[name], {}):
        exceeded[0] |= feature > parity.FEATURE_BOUND
        exceeded[1] |= embedding > parity.EMBEDDING_BOUND
        if all(exceeded):
            return
    pytest.fail(f"features and embedding exceed their bounds: {exceeded}")


@pytest.mark.parametrize("name", NO_EFFECT)
@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_flag_without_effect_stays_within_the_bounds(family: str, name: str) -> None:
    """If this test fails for a flag, the flag has an effect and must move to one of the tables above."""
    front_end, network, reason = NO_EFFECT[name]
    print(f"{name}: {reason}")
    assert _within_bounds(family, front_end, network)


@pytest.mark.parametrize("family", parity.GOLDEN_SEEDS)
def test_only_the_channel_rule_of_the_family_gives_the_golden_features(family: str) -> None:
    """Only the family's own rule gives the golden waveform from this stereo file."""
    config = PRESETS[family].fbank
    waveform, other = parity.golden_signals()["zeros_inside"], parity.noise(30000)
    stereo = (waveform, other) if config.channel == "first" else (waveform + other, waveform - other)
    file = io.BytesIO()
    soundfile.write(file, np.stack(stereo, 1), parity.RATE, format="WAV", subtype="FLOAT")
    errors = {}
    for channel in ("first", "mean"):
        heard = load_audio(file.getvalue(), sample_rate=None, target_rate=parity.RATE, channel=channel)
        features = oracle.fbank(config, heard)
        errors[channel] = parity.golden_feature_error(config, family, "zeros_inside", features)
    print(family, errors)
    assert errors.pop(config.channel) <= parity.FEATURE_BOUND
    assert min(errors.values()) > parity.FEATURE_BOUND


def _tested_values() -> dict[str, set[Any]]:
    """Returns the values that the tests above set, by `Class.field`."""
    tried: dict[str, set[Any]] = {name: set() for name in ELSEWHERE}
    networks = [change for table in (NETWORK, ROUNDING, STRUCTURE) for change in table.values()]
    networks += [network for _, network, _ in NO_EFFECT.values()]
    front_ends = [*FRONT_END.values(), *(front_end for front_end, _, _ in NO_EFFECT.values())]
    for class_name, changes in (("EcapaConfig", networks), ("FbankConfig", front_ends)):
        for field, value in (item for change in changes for item in change.items()):
            tried.setdefault(f"{class_name}.{field}", set()).add(value)
    stds = tried["EcapaConfig.context_std"] & tried["EcapaConfig.pooled_std"]
    stds |= {StdConfig(unbiased=True)}  # the weighted deviation has no unbiased form
    for std in stds:
        for field, value in dataclasses.asdict(std).items():
            if value != getattr(StdConfig(), field):
                tried.setdefault(f"StdConfig.{field}", set()).add(value)
    return tried


@pytest.mark.parametrize("cls", [FbankConfig, EcapaConfig, StdConfig])
def test_every_field_and_every_choice_is_tested(cls: type) -> None:
    """A new field or choice must be added to a table in this file, or to `ELSEWHERE`."""
    tried = _tested_values()
    for field, hint in typing.get_type_hints(cls).items():
        name = f"{cls.__name__}.{field}"
        assert name in tried, f"{name} is changed by no test"
        if typing.get_origin(hint) is Literal and name not in ELSEWHERE:
            default = getattr(cls(), field)
            assert {*tried[name], default} == set(typing.get_args(hint)), f"a choice of {name} is tried by no test"
