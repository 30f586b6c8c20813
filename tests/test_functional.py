"""Tests of the pure functions under JAX transformations, exported for all platforms, and sharded over devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

import ecapa_jax
from ecapa_jax import functional
from ecapa_jax.config import ModelConfig
from helpers import parity
from helpers.weights import random_tensors, small_config, variables_of

CONFIGS = {
    preset: small_config(preset, width=16, se_channels=8, attention_channels=8)
    for preset in ("3dspeaker", "speechbrain")
}
VARIABLES = {preset: variables_of(config.ecapa, random_tensors(config.ecapa)) for preset, config in CONFIGS.items()}
EMBED = jax.jit(functional.embed, static_argnums=0)
# The compiled programs run only a few times, so optimization would cost more than it saves.
QUICK = jax.jit(functional.embed, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
SIZE = 8000


def _batch(lengths: tuple[int, ...], padding: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    waveforms = 0.1 * np.random.default_rng(seed).standard_normal((len(lengths), SIZE)).astype(np.float32)
    counts = np.array(lengths, np.int32)
    return np.where(np.arange(SIZE) < counts[:, None], waveforms, np.float32(padding)), counts


@pytest.mark.parametrize("preset", CONFIGS)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1040, 1041, 7777]), min_size=1, max_size=4),
    padding=st.sampled_from([float("nan"), float("inf"), 1e30, -0.5]),
    seed=st.integers(0, 2),
)
def test_padding_and_other_rows_do_not_change_the_embedding(
    preset: str, lengths: list[int], padding: float, seed: int
) -> None:
    """The test uses float64, where any difference is an error. In float32, the order of additions matters."""
    config = CONFIGS[preset]
    rows = tuple((lengths * 4)[:4])
    waveforms, counts = _batch(rows, padding, seed)
    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, VARIABLES[preset])
        together = QUICK(config, variables, np.float64(waveforms), counts)
        for row, length in enumerate(rows[: len(lengths)]):
            one = np.float64(waveforms[row : row + 1, :length])
            alone = QUICK(config, variables, one, counts[row : row + 1])
            assert alone.dtype == np.float64
            assert parity.relative_error(together[row], alone[0]) <= 1e-12


@pytest.mark.parametrize("preset", CONFIGS)
def test_float32_embedding_in_a_padded_batch_is_within_the_bounds(preset: str) -> None:
    config, variables = CONFIGS[preset], VARIABLES[preset]
    waveforms, counts = _batch((7777, 8000), padding=float("nan"))
    together = EMBED(config, variables, waveforms, counts)
    alone = EMBED(config, variables, waveforms[:1, :7777], counts[:1])
    assert parity.same_embeddings(together[:1], alone)


def test_too_short_waveform_gives_nan_in_its_own_row_only() -> None:
    config, variables = CONFIGS["3dspeaker"], VARIABLES["3dspeaker"]
    assert ecapa_jax.minimum_samples(config) == 1040
    assert ecapa_jax.minimum_samples(CONFIGS["speechbrain"]) == 640
    waveforms, _ = _batch((SIZE,) * 4)
    embeddings = EMBED(config, variables, waveforms, np.array([0, 1039, 1040, SIZE], np.int32))
    assert np.isnan(embeddings[:2]).all()
    assert np.isfinite(embeddings[2:]).all()


def test_vmap_equals_the_batch() -> None:
    config, variables = CONFIGS["3dspeaker"], VARIABLES["3dspeaker"]
    waveforms, counts = _batch((8000, 5000))
    one = lambda waveform, length: functional.embed(config, variables, waveform[None], length[None])[0]  # noqa: E731
    assert parity.same_embeddings(
        jax.jit(jax.vmap(one))(waveforms, counts), EMBED(config, variables, waveforms, counts)
    )


@pytest.mark.parametrize("preset", CONFIGS)
def test_gradients_are_zero_in_the_padding_and_finite(preset: str) -> None:
    config, variables = CONFIGS[preset], VARIABLES[preset]
    waveforms, counts = _batch((8000, 3000, 0))
    waveforms[0, 4000:6000] = 0  # digital silence, where the logarithm is that of the floor

    def score(variables: dict, waveforms: jax.Array) -> jax.Array:
        embeddings = functional.embed(config, variables, waveforms, counts)
        return ecapa_jax.cosine(embeddings[0], embeddings[1])

    to_variables, to_waveforms = jax.jit(jax.grad(score, argnums=(0, 1)))(variables, jnp.asarray(waveforms))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(to_variables))
    assert np.isfinite(to_waveforms).all()
    assert np.abs(to_waveforms[1, :3000]).max() > 0
    assert not np.any(to_waveforms[1, 3000:])
    assert not np.any(to_waveforms[2])


def test_shard_map_equals_the_batch() -> None:
    config, variables = CONFIGS["3dspeaker"], VARIABLES["3dspeaker"]
    waveforms, counts = _batch((8000, 5000))
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    data, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.jit(
        jax.shard_map(
            lambda v, w, n: functional.embed(config, v, w, n),
            mesh=mesh,
            in_specs=(whole, data, data),
            out_specs=data,
        )
    )
    assert parity.same_embeddings(sharded(variables, waveforms, counts), EMBED(config, variables, waveforms, counts))


def test_init_has_the_shapes_of_abstract_and_gives_finite_embeddings() -> None:
    config = CONFIGS["3dspeaker"]
    variables = functional.init(config, jax.random.key(0))
    shapes = functional.abstract(config)
    assert set(shapes) == {"params", "batch_stats", "constants"}
    assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    waveforms, counts = _batch((8000,))
    assert np.isfinite(EMBED(config, variables, waveforms, counts)).all()


PARAMETERS = {
    "3dspeaker": 20_767_552,
    "speechbrain": 20_767_552,
    "speechbrain-langid": 21_058_432,
    "mvector": 6_194_048,
    "wespeaker-c512": 6_190_720,
    "wespeaker-c1024": 14_657_088,
    "rdino": 22_733_952,
    "ssl-modelscope": 22_733_952,
    "taoruijie": 15_444_544,
    "nemo": 20_916_928,
    "nemo-2.5": 20_916_928,
    "espnet": 14_658_112,
    "espnet-2025": 14_658_112,
}
"""Numbers of learnable parameters that the publishers state, or that their classes have."""


@pytest.mark.parametrize("name", ecapa_jax.PRESETS)
def test_published_parameter_count(name: str) -> None:
    config = ecapa_jax.PRESETS[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(functional.abstract(config)["params"])) == PARAMETERS[name]


def test_score_matrix_and_cosine_equal_numpy() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 5, 192)).astype(np.float32)
    expected = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(jax.jit(ecapa_jax.score_matrix)(a, b), expected, atol=1e-6)
    np.testing.assert_allclose(ecapa_jax.cosine(a, b), np.diag(expected), atol=1e-6)
    assert float(ecapa_jax.cosine(np.zeros(4, np.float32), np.ones(4, np.float32))) == 0


@pytest.mark.parametrize("preset", CONFIGS)
def test_export_lowers_for_cpu_cuda_and_tpu(preset: str) -> None:
    pytest.importorskip("flatbuffers", reason="jax.export serializes with flatbuffers (pip install ecapa-jax[export])")
    config, variables = CONFIGS[preset], VARIABLES[preset]
    waveforms, counts = _batch((8000, 5000))
    embed = jax.jit(lambda waveforms, lengths: functional.embed(config, variables, waveforms, lengths))
    exported = jax.export.export(embed, platforms=("cpu", "cuda", "tpu"))(waveforms, counts)
    again = jax.export.deserialize(exported.serialize())
    assert set(again.platforms) == {"cpu", "cuda", "tpu"}
    assert parity.same_embeddings(again.call(waveforms, counts), EMBED(config, variables, waveforms, counts))


SHARDED = """
import sys, numpy as np, jax
sys.path.insert(0, sys.argv[1])
from ecapa_jax.config import ModelConfig
from ecapa_jax.encoder import SpeakerEncoder
from helpers import parity
from helpers.weights import random_tensors, shallow_config, variables_of
assert len(jax.local_devices()) == 8
config = shallow_config()
variables = variables_of(config.ecapa, random_tensors(config.ecapa))
noise = np.random.default_rng(0).standard_normal(40000).astype(np.float32) / 10
waveforms = [noise[: 1040 + 400 * i] for i in range(35)]
eight = SpeakerEncoder(config, variables).embed(waveforms)
one = SpeakerEncoder(config, variables, devices=jax.local_devices()[:1]).embed(waveforms)
assert parity.same_embeddings(eight, one)
"""


def test_eight_devices_give_the_embeddings_of_one_device() -> None:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]


def test_config_is_a_static_argument() -> None:
    """A config is hashable and compares by value, so equal configs compile only once."""
    config = CONFIGS["3dspeaker"]
    same = ModelConfig(fbank=config.fbank, ecapa=config.ecapa)
    assert hash(same) == hash(config)
    assert same == config
