"""Tests of long recordings: chunked embeddings equal one-pass embeddings for every family, length and chunk size."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax import functional
from ecapa_jax.config import FbankConfig, ModelConfig, StdConfig
from ecapa_jax.errors import AudioError, EcapaError
from ecapa_jax.long import chunks as chunk_functions
from ecapa_jax.long import passes
from ecapa_jax.presets import PRESETS
from helpers import parity
from helpers.long_models import RATE, random_variables, small_mels, sound

CHUNK = 90
"""Number of frames."""

embed = jax.jit(functional.embed, static_argnums=0)


@pytest.fixture(scope="module")
def clear_compiled_programs() -> Iterator[None]:
    """Clears JAX's caches after this file, because programs that `quick_compilation` made round differently."""
    yield
    jax.clear_caches()


@pytest.fixture
def quick_compilation(clear_compiled_programs: None) -> Iterator[None]:
    """Disables most of XLA's optimizations, because compiling would take most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def tiny_config(preset: str, **ecapa: Any) -> ModelConfig:
    """Returns a preset with few channels, blocks and Res2 chunks, so that it compiles quickly."""
    model = PRESETS[preset]
    network = model.ecapa
    blocks = 2 if preset in ("3dspeaker", "taoruijie", "nemo") else 1
    changes = {
        "channels": (12,) * (blocks + 1),
        "kernel_sizes": network.kernel_sizes[: blocks + 1],
        "dilations": network.dilations[:blocks],
        "res2_scale": 3,
        "se_channels": 8,
        "attention_channels": 8,
        "mfa_channels": 24,
        "embedding_dim": 12,
    }
    return dataclasses.replace(model, ecapa=dataclasses.replace(network, **{**changes, **ecapa}))


def embed_whole(config: ModelConfig, variables: dict[str, Any], waveform: np.ndarray, size: int = 0) -> np.ndarray:
    batch, lengths = parity.pad_batch([waveform], size)
    return np.asarray(embed(config, variables, batch, lengths))[0]


def split(waveform: np.ndarray, *cuts: int) -> list[np.ndarray]:
    return np.split(waveform, sorted(cuts))


PLAIN = {"global_context": False, "mfa_norm": False, "padding": "zeros"}
CONFIGS = {
    **{name: tiny_config(name) for name in ("3dspeaker", "speechbrain", "taoruijie", "nemo", "nemo-2.5", "espnet")},
    **{name: tiny_config(name) for name in ("espnet-2025", "speechbrain-langid", "rdino", "wespeaker-c1024")},
    "mean": small_mels(pooling="mean", **PLAIN),
    "mean_std": small_mels(pooling="mean_std", context_std=StdConfig(form="moment", unbiased=True), **PLAIN),
    "multi_head": small_mels(pooling="multi_head", **PLAIN),
    "multi_query": small_mels(pooling="multi_query", mfa_kernel_size=3, mfa_dilation=2, **PLAIN),
    "posterior": small_mels(pooling="posterior", pad_to=16, **PLAIN),
    "no_context": small_mels(global_context=False),
}
"""The front end and flags of every family, and the poolings that no family uses."""


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", CONFIGS)
def test_chunked_embedding_equals_one_pass(name):
    config = CONFIGS[name]
    variables, waveform = random_variables(config), sound(4.3)
    expected = embed_whole(config, variables, waveform)
    found = passes.embed(config, variables, split(waveform, 1, 7000, 7001, 50000), chunk_frames=CHUNK)
    error = parity.relative_error(found, expected)
    print(f"{name}: {error:.1e} of the largest, cosine {parity.cosine(found, expected):.9f}")
    assert parity.same_embedding(found, expected)


BOUNDARIES = small_mels(2, framing="center_reflect", pad_to=8)
"""This config reflects at the ends of waveform and frames, and adds blank frames."""


@functools.cache
def boundary_variables() -> dict[str, Any]:
    return random_variables(BOUNDARIES, 1)


@settings(max_examples=30, deadline=None)
@given(
    chunks=st.integers(0, 5),
    frames=st.integers(-3, 3),
    samples=st.integers(-2, 2),
    cuts=st.lists(st.integers(0, 90000)),
)
def test_lengths_near_chunk_boundaries_equal_one_pass(chunks, frames, samples, cuts):
    n_samples = max((chunks * CHUNK + frames) * 160 + samples, functional.minimum_samples(BOUNDARIES))
    waveform = sound(6.0)[:n_samples]
    expected = embed_whole(BOUNDARIES, boundary_variables(), waveform, 6 * RATE)
    parts = split(waveform, *cuts)
    found = passes.embed(BOUNDARIES, boundary_variables(), parts, chunk_frames=CHUNK)
    assert parity.same_embedding(found, expected)


@pytest.mark.parametrize(("chunk_frames", "rows"), [(40, 1), (CHUNK, 3), (10_000, 1)])
def test_chunk_size_does_not_change_the_embedding(chunk_frames, rows):
    waveform = sound(5.0)
    expected = passes.embed(BOUNDARIES, boundary_variables(), [waveform], chunk_frames=CHUNK)
    found = passes.embed(BOUNDARIES, boundary_variables(), [waveform], chunk_frames=chunk_frames, rows=rows)
    assert parity.same_embeddings([found], [expected])


def test_halo_equals_the_receptive_field():
    """The published network has 65 frames on each side. In a small network, frames outside have no influence."""
    assert chunk_functions.halo(PRESETS["3dspeaker"].ecapa, 3, mfa=True) == 2 + 7 * (2 + 3 + 4)
    config = small_mels(2, mfa_kernel_size=3, mfa_dilation=2, **PLAIN).ecapa
    model_config = ModelConfig(fbank=FbankConfig(n_mels=20), ecapa=config)
    model = functional.network(config, random_variables(model_config))
    reach = chunk_functions.halo(config, 2, mfa=True)
    features = np.random.default_rng(0).standard_normal((1, 101, 20)).astype(np.float32)
    other = features.copy()
    other[:, 50] += 1
    means = tuple(jnp.full((1, 16), 0.3) for _ in range(2))
    seen = jnp.ones((1, 101), bool)
    mfa_frames = jax.jit(lambda x: chunk_functions.moments.mfa_frames(model, x, seen, means))
    frames = [np.asarray(mfa_frames(x))[0] for x in (features, other)]
    changed = np.flatnonzero(np.abs(frames[0] - frames[1]).max(axis=1))
    assert (changed[0], changed[-1]) == (50 - reach, 50 + reach)


def test_parts_that_are_too_short_together_are_refused():
    minimum = functional.minimum_samples(BOUNDARIES)
    with pytest.raises(AudioError, match=rf"{minimum - 1} samples are too short: this model needs {minimum}"):
        passes.embed(BOUNDARIES, boundary_variables(), split(sound(1.0)[: minimum - 1], 3), chunk_frames=CHUNK)


def test_full_disk_is_reported(monkeypatch):
    monkeypatch.setattr(passes.tempfile, "SpooledTemporaryFile", lambda *args, **options: FullDisk())
    with pytest.raises(EcapaError, match=r"No space left on device.*115 MB per hour.*TMPDIR"):
        passes.embed(BOUNDARIES, boundary_variables(), [sound(2.0)], chunk_frames=CHUNK)


class FullDisk:
    def write(self, content: memoryview) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None: ...


MEMORY = """
import json, resource, sys
import numpy as np
import test_long
from ecapa_jax.long import passes

passes._IN_MEMORY = 1 << 20
config, variables = test_long.BOUNDARIES, test_long.boundary_variables()

def peak(seconds):
    generator = np.random.default_rng(0)
    blocks = (0.1 * generator.standard_normal(160_000).astype(np.float32) for _ in range(seconds // 10))
    assert np.isfinite(passes.embed(config, variables, blocks, chunk_frames=500)).all()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

print(json.dumps([peak(int(seconds)) for seconds in sys.argv[1:]]))
"""


def peaks_mb(*seconds: int) -> list[float]:
    """Returns the peak memory of a process, in MB, after each recording."""
    command = [sys.executable, "-c", MEMORY, *map(str, seconds)]
    paths = [str(parity.ROOT / "tests"), str(parity.ROOT)]
    environment = {**os.environ, "PYTHONPATH": ":".join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


def test_memory_does_not_grow_with_the_recording():
    short, fifteen_minutes = peaks_mb(60, 900)
    print(f"{short:.0f} MB after a minute, {fifteen_minutes:.0f} MB after fifteen; its samples alone are 55 MB")
    assert fifteen_minutes - short < 25


@pytest.mark.slow
def test_memory_is_bounded_for_one_hour():
    short, hour = peaks_mb(60, 3600)
    print(f"{short:.0f} MB after a minute, {hour:.0f} MB after an hour; its samples alone are 220 MB")
    assert hour - short < 25
