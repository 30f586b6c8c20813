"""Tests of the families with their own front end, against stored outputs of independent code.

A second part checks that the comparison fails if one flag of the front end or network is changed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from ecapa_jax import functional
from ecapa_jax.config import FbankConfig, ModelConfig, StdConfig
from ecapa_jax.convert.rules import apply_rules
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.errors import ConversionError
from ecapa_jax.features.fbank import fbank, seen_mask
from ecapa_jax.presets import KALDI_POVEY
from helpers import families, parity

QUICK = {"xla_backend_optimization_level": 0}
EMBED = jax.jit(functional.embed, static_argnums=0, compiler_options=QUICK)
FBANK = jax.jit(fbank, static_argnums=0, compiler_options=QUICK)
APPLY = jax.jit(functional.apply, static_argnums=0, compiler_options=QUICK)


def _errors(family: str, config: FbankConfig, features: np.ndarray, mask: np.ndarray) -> float:
    """Returns the worst error of the features against the golden values, or infinity if the frame counts differ."""
    worst = 0.0
    for row, signal in enumerate(families.signals()):
        alone = features[row, : mask[row].sum()]
        theirs = families.golden()[f"{family}/{signal}/features"]
        same = len(alone) == families.golden()[f"{family}/{signal}/frames"]
        error = np.abs(alone[:: parity.GOLDEN_STEP] - theirs).max() if same else np.inf
        worst = max(worst, parity.in_nepers(config, float(error)))
    return worst


def _embedding_errors(family: str, embeddings: np.ndarray) -> list[float]:
    stored = families.golden()
    return [
        parity.relative_error(embedding, stored[f"{family}/{signal}/embedding"])
        for embedding, signal in zip(embeddings, families.signals(), strict=True)
    ]


@pytest.mark.parametrize("family", families.SEEDS)
def test_weights_have_the_hash_of_the_golden_values(family: str) -> None:
    stored = str(families.golden()[f"{family}/weights"])
    assert parity.weights_hash(families.tensors(family)) == stored, "run tests/golden/make_families.py again"


@pytest.mark.parametrize("family", families.SEEDS)
def test_padded_batch_equals_the_originals_one_by_one(family: str) -> None:
    config, variables = families.config(family), families.variables(family)
    batch = parity.pad_batch(families.signals().values())
    features, mask = map(np.asarray, FBANK(config.fbank, *batch, variables["constants"]))
    error = _errors(family, config.fbank, features, mask)
    embeddings = np.asarray(EMBED(config, variables, *batch))
    worst = max(_embedding_errors(family, embeddings))
    print(f"{family:<12}features {error:.1e} embedding {worst:.1e}")
    assert error <= parity.FEATURE_BOUND
    assert worst <= parity.EMBEDDING_BOUND
    assert all(
        parity.cosine(ours, families.golden()[f"{family}/{signal}/embedding"]) >= parity.COSINE_BOUND
        for ours, signal in zip(embeddings, families.signals(), strict=True)
    )


@pytest.mark.parametrize("family", ["taoruijie", "nemo", "nemo-2.5"])
def test_embedding_of_one_utterance_equals_its_row_in_a_batch(family: str) -> None:
    """In its own shape, an utterance has fewer blank frames (as in NeMo) than in the batch."""
    config, variables = families.config(family), families.variables(family)
    waveform = families.signals()["faint"]
    alone = np.asarray(EMBED(config, variables, waveform[None], np.array([len(waveform)], np.int32)))[0]
    theirs = families.golden()[f"{family}/faint/embedding"]
    assert parity.same_embedding(alone, theirs)


COMPUTED = {"mel_source": "computed"}
FRONT_END: dict[str, tuple[str, dict[str, Any]]] = {
    "center_zeros": ("taoruijie", {"framing": "center_zeros"}),
    "snip_edges": ("taoruijie", {"framing": "snip_edges"}),
    "frame pre-emphasis": ("taoruijie", {"preemphasis_mode": "frame"}),
    "zero before the first": ("taoruijie", {"preemphasis_mode": "signal_zero"}),
    "no pre-emphasis": ("taoruijie", {"preemphasis": 0.0}),
    "hann": ("taoruijie", {**COMPUTED, "window": "hann"}),
    "symmetric": ("taoruijie", {**COMPUTED, "window_periodic": False}),
    "slaney scale": ("taoruijie", {**COMPUTED, "mel_scale": "slaney"}),
    "mel triangles": ("taoruijie", {**COMPUTED, "mel_shape": "mel"}),
    "8000 Hz": ("taoruijie", {**COMPUTED, "f_max": 8000.0}),
    "0 Hz": ("taoruijie", {**COMPUTED, "f_min": 0.0}),
    "floor": ("taoruijie", {"floor": 2.0**-24}),
    "clamp": ("taoruijie", {"floor_mode": "clamp"}),
    "dc": ("taoruijie", {"remove_dc": True}),
    "instance": ("taoruijie", {"normalization": "instance"}),
    "no blank frames": ("nemo", {"pad_to": 1}),
    "8 blank frames": ("nemo", {"pad_to": 8}),
    "2.5": ("nemo", {"framing": "center_zeros_floor"}),
    "zeros about": ("nemo", {"framing": "center_zeros"}),
    "reflected before the first": ("nemo", {"preemphasis_mode": "signal_reflect"}),
    "periodic": ("nemo", {**COMPUTED, "window_periodic": True}),
    "htk scale": ("nemo", {**COMPUTED, "mel_scale": "htk"}),
    "no area": ("nemo", {**COMPUTED, "mel_shape": "hz"}),
    "mean only": ("nemo", {"normalization": "mean"}),
    "biased": ("nemo", {"normalization": "instance"}),
    "before 2.5": ("nemo-2.5", {"framing": "center_reflect"}),
    "WeSpeaker's scale": ("wespeaker", {"waveform_scale": 1.0}),
    "WeSpeaker's window": ("wespeaker", {"window": "povey"}),
    "WeSpeaker's mean": ("wespeaker", {"normalization": "none"}),
    "language's range": ("speechbrain-langid", {"top_db": None}),
    "language's triangles": ("speechbrain-langid", {"mel_shape": "hz"}),
    "RDINO's variance": ("rdino", {"normalization": "mean"}),
    "RDINO unbiased": ("rdino", {"normalization": "mean_std"}),
    "RDINO's floor": ("rdino", {"floor": 2.0**-24}),
    "RDINO's floor clamped": ("rdino", {"floor_mode": "clamp"}),
    "RDINO's window": ("rdino", {"window": "hamming"}),
    "RDINO's window symmetric": ("rdino", {"window_periodic": False}),
    "RDINO's frames": ("rdino", {"framing": "center_zeros"}),
    "RDINO's lowest band": ("rdino", {"f_min": 20.0}),
    "RDINO's highest band": ("rdino", {"f_max": 7600.0}),
    "RDINO's triangles": ("rdino", {"mel_shape": "mel"}),
    "RDINO on Kaldi's fbank": ("rdino", dataclasses.asdict(KALDI_POVEY)),
}
"""Fields that are set to the values of another family."""

UNSEEN_IN_FEATURES = ("no blank frames", "8 blank frames")
FRAMES = 160


@pytest.mark.parametrize("name", FRONT_END)
def test_changed_front_end_flag_exceeds_the_bound(name: str) -> None:
    family, change = FRONT_END[name]
    config, variables = families.config(family), families.variables(family)
    changed = dataclasses.replace(config.fbank, **change)
    features, mask = FBANK(changed, *parity.pad_batch(families.signals().values()), variables["constants"])
    seen = np.asarray(seen_mask(changed, mask))
    error = _errors(family, changed, np.asarray(features), np.asarray(mask))
    rest = ((0, 0), (0, FRAMES - features.shape[1]))
    embeddings, _ = APPLY(
        config.ecapa, variables, np.pad(features, (*rest, (0, 0))), np.pad(mask, rest), seen=np.pad(seen, rest)
    )
    worst = max(_embedding_errors(family, np.asarray(embeddings)))
    print(f"{name}: features {error:.1e} embedding {worst:.1e}")
    assert error > parity.FEATURE_BOUND or name in UNSEEN_IN_FEATURES
    assert worst > parity.EMBEDDING_BOUND


NETWORK: dict[str, tuple[str, dict[str, Any]]] = {
    "reflect": ("taoruijie", {"padding": "reflect"}),
    "previous": ("taoruijie", {"block_input": "previous"}),
    "first": ("taoruijie", {"multiscale": "first"}),
    "dilations": ("taoruijie", {"dilations": (1, 1, 1)}),
    "biased context": ("taoruijie", {"context_std": StdConfig(epsilon=1e-4)}),
    "context floor": ("taoruijie", {"context_std": StdConfig(unbiased=True, epsilon=1e-7)}),
    "pooled floor": ("taoruijie", {"pooled_std": StdConfig(form="moment", epsilon=1e-7)}),
    "ESPnet from 202511": ("espnet", {"context_std": StdConfig(epsilon=2.0**-23, maximum=1e4)}),
    "tanh": ("espnet", {"attention_hidden": "relu_bn_tanh"}),
    "NeMo's dilations": ("nemo", {"dilations": (2, 3, 4)}),
    "NeMo's padding": ("nemo", {"padding": "reflect"}),
    "NeMo's floors": ("nemo", {"context_std": StdConfig(epsilon=1e-7), "pooled_std": StdConfig(epsilon=1e-7)}),
    "NeMo's context unbiased": ("nemo", {"context_std": StdConfig(unbiased=True, epsilon=1e-10)}),
    "WeSpeaker's padding": ("wespeaker", {"padding": "reflect"}),
    "WeSpeaker's chunks": ("wespeaker", {"multiscale": "first"}),
    "WeSpeaker's block input": ("wespeaker", {"block_input": "sum"}),
    "WeSpeaker's dilations": ("wespeaker", {"dilations": (1, 1, 1)}),
    "WeSpeaker's tanh": ("wespeaker", {"attention_hidden": "relu_tanh"}),
    "WeSpeaker's context biased": ("wespeaker", {"context_std": StdConfig(epsilon=1e-7, epsilon_mode="add")}),
    "WeSpeaker's context clamped": ("wespeaker", {"context_std": StdConfig(unbiased=True, epsilon=1e-7)}),
    "WeSpeaker's context floor": (
        "wespeaker",
        {"context_std": StdConfig(unbiased=True, epsilon=1e-12, epsilon_mode="add")},
    ),
    "WeSpeaker's pooled floor": ("wespeaker", {"pooled_std": StdConfig(form="moment", epsilon=1e-12)}),
    "WeSpeaker's pooled floor, higher": ("wespeaker", {"pooled_std": StdConfig(form="moment", epsilon=1e-4)}),
    "WeSpeaker's pooled floor, added": (
        "wespeaker",
        {"pooled_std": StdConfig(form="moment", epsilon=1e-7, epsilon_mode="add")},
    ),
    "language without a slope": ("speechbrain-langid", {"activation": "relu"}),
    "language with slopes everywhere": ("speechbrain-langid", {"activation_scope": "all"}),
    "language's floors": (
        "speechbrain-langid",
        {"context_std": StdConfig(epsilon=1e-7), "pooled_std": StdConfig(epsilon=1e-7)},
    ),
    "RDINO's context unbiased": ("rdino", {"context_std": StdConfig(unbiased=True)}),
    "RDINO's pooled floor": ("rdino", {"pooled_std": StdConfig(epsilon=1e-7)}),
}


@pytest.mark.parametrize("name", NETWORK)
def test_changed_network_flag_exceeds_the_bound(name: str) -> None:
    family, change = NETWORK[name]
    config, variables = families.config(family), families.variables(family)
    changed = dataclasses.replace(config, ecapa=dataclasses.replace(config.ecapa, **change))
    embeddings = np.asarray(EMBED(changed, variables, *parity.pad_batch(families.signals().values())))
    worst = max(_embedding_errors(family, embeddings))
    print(f"{name}: embedding {worst:.1e}")
    assert worst > parity.EMBEDDING_BOUND


def test_form_of_the_standard_deviation_changes_only_rounding() -> None:
    """The moment and central forms are mathematically equal, so these sounds do not distinguish them.

    tests/peers/test_wespeaker.py tests inputs that do.
    """
    config, variables = families.config("wespeaker"), families.variables("wespeaker")
    std = dataclasses.replace(config.ecapa.pooled_std, form="central")
    changed = dataclasses.replace(config, ecapa=dataclasses.replace(config.ecapa, pooled_std=std))
    embeddings = np.asarray(EMBED(changed, variables, *parity.pad_batch(families.signals().values())))
    assert max(_embedding_errors("wespeaker", embeddings)) <= parity.EMBEDDING_BOUND


STRUCTURE: dict[str, tuple[str, dict[str, Any]]] = {
    "WeSpeaker's MFA": ("wespeaker", {"mfa_norm": True}),
    "WeSpeaker's attention, ReLU and norm": ("wespeaker", {"attention_hidden": "relu_bn_tanh"}),
    "WeSpeaker's attention, ESPnet's": ("wespeaker", {"attention_hidden": "relu_bn"}),
    "WeSpeaker's SE": ("wespeaker", {"se_norm": True}),
    "WeSpeaker's last norm": ("wespeaker", {"embedding_norm": True}),
    "WeSpeaker's context": ("wespeaker", {"global_context": False}),
    "WeSpeaker without attention": ("wespeaker", {"pooling": "mean_std", "global_context": False}),
    "WeSpeaker's mean alone": ("wespeaker", {"pooling": "mean", "global_context": False}),
    "WeSpeaker's deviation alone": ("wespeaker", {"pooling": "std", "global_context": False}),
    "language's bands": ("speechbrain-langid", {"n_mels": 80}),
    "language's size": ("speechbrain-langid", {"embedding_dim": 192}),
    "language's MFA": ("speechbrain-langid", {"mfa_norm": False}),
    "RDINO's attention": ("rdino", {"attention_hidden": "tanh"}),
    "RDINO's MFA": ("rdino", {"mfa_norm": False}),
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_converter_refuses_changed_structure(name: str) -> None:
    """These changes alter the names or shapes of the tensors, so no numerical comparison is needed."""
    family, change = STRUCTURE[name]
    config, chosen = families.config(family), FAMILIES[family]
    ecapa = dataclasses.replace(config.ecapa, **change)
    changed = ModelConfig(fbank=dataclasses.replace(config.fbank, n_mels=ecapa.n_mels), ecapa=ecapa)
    with pytest.raises(ConversionError, match="does not fit"):
        apply_rules(chosen.rules(ecapa), chosen.ignored, families.tensors(family), functional.abstract(changed))
