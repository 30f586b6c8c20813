"""Folded variables: the same embeddings in float32, embeddings as good in bfloat16."""

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


def model(name: str) -> tuple[ModelConfig, functional.Variables]:
    """A preset, or another family's network, at 16 channels with random weights and statistics."""
    if name in families.SEEDS:
        return families.config(name), families.variables(name)
    config = small_config(name, width=16)
    return config, variables_of(config.ecapa, random_tensors(config.ecapa))


def speech() -> tuple[np.ndarray, np.ndarray]:
    waves = [soundfile.read(path, dtype="float32")[0][:12000] for path in sorted(AUDIO.glob("*_1.flac"))]
    return np.stack(waves), np.array([12000, 9001, 11111], np.int32)


@pytest.mark.parametrize("preset", ["3dspeaker", "wespeaker", "nemo-2.5", "espnet", "mvector"])
def test_folded_equals_unfold_and_multiply(preset: str) -> None:
    config, variables = model(preset)
    waveforms, lengths = speech()
    expected = np.asarray(EMBED(config, variables, waveforms, lengths))
    folded = np.asarray(EMBED(config, functional.fold(config, variables), waveforms, lengths))
    assert parity.same_embeddings(folded, expected)


def test_folding_leaves_no_work_for_the_norms_about_the_projection() -> None:
    config, variables = model("wespeaker")
    folded = functional.fold(config, variables)
    assert jax.tree.structure(folded) == jax.tree.structure(variables)
    assert not np.any(folded["batch_stats"]["pooled_norm"]["mean"])
    assert np.all(folded["params"]["pooled_norm"]["scale"] == 1)
    assert not np.any(folded["params"]["pooling"]["logits"]["bias"])
    assert np.any(variables["params"]["pooling"]["logits"]["bias"])  # the given ones are as they were


def test_bfloat16_kernels_are_those_of_frames() -> None:
    config, variables = model("3dspeaker")
    folded = functional.fold(config, variables, "bfloat16")["params"]
    low = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(folded)
           if leaf.dtype == jnp.bfloat16}  # fmt: skip
    assert all(name.endswith("['kernel']") for name in low)
    assert not any("se" in name.split("'") or "projection" in name for name in low)
    assert "['stem']['conv']['kernel']" in low
    assert "['mfa']['conv']['kernel']" in low
    assert folded["projection"]["kernel"].dtype == jnp.float32


def test_another_dtype_is_refused() -> None:
    config, variables = model("3dspeaker")
    with pytest.raises(ConfigError, match="must be one of: float32, bfloat16"):
        functional.fold(config, variables, "float16")


def test_bfloat16_scores_as_float32() -> None:
    """The packaged model on real and synthetic voices: DESIGN's row, cosine >= 0.999 and scores within 5e-3."""
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
def test_bfloat16_decides_as_float32(name: str) -> None:
    """The packaged model on real speech: the EER moves by two target trials at most."""
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
def test_the_two_lowerings_of_a_convolution_agree(kernel_size: int, dilation: int) -> None:
    """On operands that are exact in bfloat16, with sums that float32 holds."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.integers(-8, 9, (2, 40, 4)), jnp.bfloat16)
    kernel = jnp.asarray(generator.integers(-8, 9, (kernel_size, 4, 6)), jnp.bfloat16)
    unfolded = _unfold_and_multiply(x, kernel, dilation=dilation)
    assert unfolded.shape == (2, 40 - dilation * (kernel_size - 1), 6)
    assert np.array_equal(unfolded, _convolve_by_xla(x, kernel, dilation=dilation, groups=1))


@pytest.mark.parametrize(("frames", "channels", "out"), [(1, 3, 1), (7, 4, 5), (40, 4, 6)])
def test_gradients_of_a_low_precision_product(frames: int, channels: int, out: int) -> None:
    """Those of float32, on integers whose sums float32 holds; they come in the dtypes of what they are gradients of."""
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
def test_auto_goes_by_the_processor(monkeypatch: pytest.MonkeyPatch, flag: str, vendor: str, dtype: str) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx512f", flag}))
    monkeypatch.setattr(machine, "cpu_vendor", lambda: vendor)
    assert machine.fastest_dtype(Device("cpu")) == dtype


def test_auto_goes_by_the_accelerator() -> None:
    assert machine.fastest_dtype(Device("gpu", "7.5")) == "float32"
    assert machine.fastest_dtype(Device("gpu", "9.0")) == "bfloat16"
    assert machine.fastest_dtype(Device("tpu")) == "bfloat16"


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_groups_give_what_the_batch_gives(rows: int) -> None:
    config, variables = model("3dspeaker")
    waveforms, lengths = (np.concatenate([part, part])[:4] for part in speech())
    whole = np.asarray(EMBED(config, variables, waveforms, lengths))
    in_groups = jax.jit(functional.embed_in_groups, static_argnums=(0, 4))
    grouped = np.asarray(in_groups(config, variables, waveforms, lengths, rows))
    assert parity.same_embeddings(grouped, whole)


def test_a_processor_computes_a_few_seconds_at_a_time() -> None:
    on_processor, elsewhere = Buckets(16000), Buckets(16000, platform="gpu")
    assert [on_processor.group(16, 16000 * seconds) for seconds in (1, 3, 4, 10)] == [4, 2, 1, 1]
    assert on_processor.group(1, 16000) == 1
    assert elsewhere.group(16, 48000) == 16
    assert Buckets(16000, n_devices=8).group(32, 48000) == 32


def test_padding_is_bounded_and_told() -> None:
    """Buckets waste at most a fifth; what was wasted is told."""
    for length in range(16000, 400_000, 997):
        assert 1 - length / Buckets(16000).length(length) <= 0.2
    config, variables = model("3dspeaker")
    encoder = ecapa_jax.SpeakerEncoder(config, variables)
    assert encoder.padding_waste == 0
    encoder.embed([np.float32(0.1) * np.sin(np.arange(n, dtype=np.float32)) for n in (16000, 12000)])
    assert encoder.padding_waste == pytest.approx(1 - 28000 / 32000)
