"""Tests of folded variables: the embeddings are equal in float32, and the decisions are equal in bfloat16."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import ecapa_jax
from ecapa_jax import functional
from ecapa_jax.batching import Buckets
from ecapa_jax.config import ModelConfig
from ecapa_jax.errors import ConfigError
from ecapa_jax.evaluation.trials import read_trials
from ecapa_jax.nn.matmul import _convolve_by_xla, _unfold_and_multiply, matmul
from ecapa_jax.runtime import machine
from ecapa_jax.scoring.metrics import eer
from helpers import families, parity
from helpers.weights import random_tensors, small_config, variables_of

AUDIO = Path(__file__).parents[1] / "examples" / "audio"
DATA = Path(__file__).parents[2] / "shared" / "data"
EMBED = jax.jit(functional.embed, static_argnums=0)


def make_model(name: str) -> tuple[ModelConfig, functional.Variables]:
    """Returns the configuration of a preset or family at 16 channels, with random weights and statistics."""
    if name in families.SEEDS:
        return families.config(name), families.variables(name)
    config = small_config(name, width=16)
    return config, variables_of(config.ecapa, random_tensors(config.ecapa))


def load_speech() -> tuple[np.ndarray, np.ndarray]:
    waves = [soundfile.read(path, dtype="float32")[0][:12000] for path in sorted(AUDIO.glob("*_1.flac"))]
    return np.stack(waves), np.array([12000, 9001, 11111], np.int32)


@pytest.mark.parametrize("preset", ["3dspeaker", "wespeaker", "nemo-2.5", "espnet", "mvector"])
def test_folded_embeddings_equal_unfolded_ones(preset: str) -> None:
    config, variables = make_model(preset)
    waveforms, lengths = load_speech()
    expected = np.asarray(EMBED(config, variables, waveforms, lengths))
    folded = np.asarray(EMBED(config, functional.fold(config, variables), waveforms, lengths))
    assert parity.same_embeddings(folded, expected)


def test_fold_removes_the_norms_around_the_projection() -> None:
    config, variables = make_model("wespeaker")
    folded = functional.fold(config, variables)
    assert jax.tree.structure(folded) == jax.tree.structure(variables)
    assert not np.any(folded["batch_stats"]["pooled_norm"]["mean"])
    assert np.all(folded["params"]["pooled_norm"]["scale"] == 1)
    assert not np.any(folded["params"]["pooling"]["logits"]["bias"])
    assert np.any(variables["params"]["pooling"]["logits"]["bias"])  # the original variables are not changed


def test_only_frame_level_kernels_are_bfloat16() -> None:
    config, variables = make_model("3dspeaker")
    folded = functional.fold(config, variables, "bfloat16")["params"]
    low = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(folded)
           if leaf.dtype == jnp.bfloat16}  # fmt: skip
    assert all(name.endswith("['kernel']") for name in low)
    assert not any("se" in name.split("'") or "projection" in name for name in low)
    assert "['stem']['conv']['kernel']" in low
    assert "['mfa']['conv']['kernel']" in low
    assert folded["projection"]["kernel"].dtype == jnp.float32


def test_unsupported_dtype_is_refused() -> None:
    config, variables = make_model("3dspeaker")
    with pytest.raises(ConfigError, match="must be one of: float32, bfloat16"):
        functional.fold(config, variables, "float16")


def test_bfloat16_scores_are_close_to_float32() -> None:
    """The packaged model embeds real and synthetic voices: cosine >= 0.999, and scores within 5e-3."""
    files = sorted(AUDIO.glob("*.flac"))
    encoder = ecapa_jax.load()
    low = encoder.with_dtype("bfloat16")
    a, b = encoder.embed(files), low.embed(files)
    cosines = np.diag(np.asarray(ecapa_jax.score_matrix(a, b)))
    gaps = np.abs(np.asarray(ecapa_jax.score_matrix(a, a)) - np.asarray(ecapa_jax.score_matrix(b, b)))
    print(f"smallest cosine {cosines.min():.6f}, largest score change {gaps.max():.1e}")
    assert 0.999 <= cosines.min() < 1
    assert gaps.max() <= 5e-3
    assert low.fingerprint != encoder.fingerprint
    assert encoder.with_dtype("float32").fingerprint == encoder.fingerprint


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="needs the speech of ../shared")
@pytest.mark.parametrize("name", sorted(path.stem for path in (DATA / "lists").glob("*.txt")) or ["none"])
def test_bfloat16_error_rates_are_close_to_float32(name: str) -> None:
    """The EER of the packaged model on real speech changes by at most two target trials."""
    trials = read_trials(DATA / "lists" / f"{name}.txt")
    encoder = ecapa_jax.load()
    unit = [one.embed([DATA / file for file in trials.names]) for one in (encoder, encoder.with_dtype("bfloat16"))]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in unit]
    scores = [np.einsum("td,td->t", rows[trials.enrol], rows[trials.test]) for rows in unit]
    rates = [eer(score, trials.known_labels) for score in scores]
    cosine, change = np.sum(unit[0] * unit[1], axis=1).min(), np.abs(scores[0] - scores[1]).max()
    print(f"{name}: cosine >= {cosine:.6f}, scores within {change:.1e}, EER {rates[0]:.4%} and {rates[1]:.4%}")
    assert cosine >= 0.999
    assert change <= 5e-3
    assert abs(rates[0] - rates[1]) * np.sum(trials.known_labels) <= 2


@pytest.mark.parametrize(("kernel_size", "dilation"), [(5, 1), (3, 3)])
def test_both_convolution_implementations_are_equal(kernel_size: int, dilation: int) -> None:
    """The operands are exact in bfloat16, and the sums are exact in float32."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.integers(-8, 9, (2, 40, 4)), jnp.bfloat16)
    kernel = jnp.asarray(generator.integers(-8, 9, (kernel_size, 4, 6)), jnp.bfloat16)
    unfolded = _unfold_and_multiply(x, kernel, dilation=dilation)
    assert unfolded.shape == (2, 40 - dilation * (kernel_size - 1), 6)
    assert np.array_equal(unfolded, _convolve_by_xla(x, kernel, dilation=dilation, groups=1))


@pytest.mark.parametrize(("frames", "channels", "out"), [(1, 3, 1), (7, 4, 5), (40, 4, 6)])
def test_gradients_of_a_bfloat16_product_equal_float32(frames: int, channels: int, out: int) -> None:
    """The operands are integers whose sums are exact in float32. Each gradient has the dtype of its operand."""
    generator = np.random.default_rng(1)
    x, kernel, cotangent = (
        jnp.asarray(generator.integers(-4, 5, shape), jnp.float32)
        for shape in [(2, frames, channels), (channels, out), (2, frames, out)]
    )
    exact = jax.vjp(matmul, x, kernel)[1](cotangent)
    low = jax.vjp(matmul, x, kernel.astype(jnp.bfloat16))[1](cotangent)
    assert [leaf.dtype for leaf in low] == [jnp.float32, jnp.bfloat16]
    assert np.array_equal(low[0], exact[0])
    assert np.array_equal(low[1], exact[1].astype(jnp.bfloat16))


class Device:
    def __init__(self, platform: str, capability: str = ""):
        self.platform, self.compute_capability = platform, capability


@pytest.mark.parametrize(
    ("flag", "vendor", "dtype"),
    [
        ("amx_bf16", "GenuineIntel", "bfloat16"),
        ("avx512_bf16", "AuthenticAMD", "bfloat16"),
        ("avx512_bf16", "GenuineIntel", "float32"),
        ("avx2", "AuthenticAMD", "float32"),
    ],
)
def test_fastest_dtype_depends_on_the_cpu(monkeypatch: pytest.MonkeyPatch, flag: str, vendor: str, dtype: str) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx512f", flag}))
    monkeypatch.setattr(machine, "cpu_vendor", lambda: vendor)
    assert machine.fastest_dtype(Device("cpu")) == dtype


def test_fastest_dtype_depends_on_the_accelerator() -> None:
    assert machine.fastest_dtype(Device("gpu", "7.5")) == "float32"
    assert machine.fastest_dtype(Device("gpu", "9.0")) == "bfloat16"
    assert machine.fastest_dtype(Device("tpu")) == "bfloat16"


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_embed_in_groups_equals_embed(rows: int) -> None:
    config, variables = make_model("3dspeaker")
    waveforms, lengths = (np.concatenate([part, part])[:4] for part in load_speech())
    whole = np.asarray(EMBED(config, variables, waveforms, lengths))
    in_groups = jax.jit(functional.embed_in_groups, static_argnums=(0, 4))
    grouped = np.asarray(in_groups(config, variables, waveforms, lengths, rows))
    assert parity.same_embeddings(grouped, whole)


def test_group_size_is_small_on_a_cpu() -> None:
    on_processor, elsewhere = Buckets(16000), Buckets(16000, platform="gpu")
    assert [on_processor.group(16, 16000 * seconds) for seconds in (1, 3, 4, 10)] == [4, 2, 1, 1]
    assert on_processor.group(1, 16000) == 1
    assert elsewhere.group(16, 48000) == 16
    assert Buckets(16000, n_devices=8).group(32, 48000) == 32


def test_padding_waste_is_bounded_and_reported() -> None:
    """Buckets add at most a fifth of padding, and `padding_waste` reports how much."""
    for length in range(16000, 400_000, 997):
        assert 1 - length / Buckets(16000).length(length) <= 0.2
    config, variables = make_model("3dspeaker")
    encoder = ecapa_jax.SpeakerEncoder(config, variables)
    assert encoder.padding_waste == 0
    encoder.embed([np.float32(0.1) * np.sin(np.arange(n, dtype=np.float32)) for n in (16000, 12000)])
    assert encoder.padding_waste == pytest.approx(1 - 28000 / 32000)
