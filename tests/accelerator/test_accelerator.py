"""Tests for a GPU or TPU: `pytest -m accelerator -s` prints the measured values. They are skipped on a CPU.

These tests were never run on an accelerator during development.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np
import pytest

from ecapa_jax import functional
from ecapa_jax.config import ModelConfig
from ecapa_jax.presets import PRESETS
from ecapa_jax.train.config import AugmentConfig, MeshConfig, TrainConfig
from ecapa_jax.train.scale.mesh import batch_rows, global_batch, make_mesh, mesh_size
from ecapa_jax.train.schedules import Clock
from ecapa_jax.train.start import fresh_state
from ecapa_jax.train.step import StepSetup, compiled_step, compute_gradients

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs a GPU or a TPU"),
]

SPEAKERS, SAMPLES = 1000, 48_000
MODEL = PRESETS["3dspeaker"]


def shrink(model: ModelConfig = MODEL) -> ModelConfig:
    return dataclasses.replace(model, ecapa=dataclasses.replace(model.ecapa, channels=(128,) * 4, mfa_channels=384))


def make_waveforms(batch: int, samples: int = SAMPLES) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((batch, samples))).astype(np.float32)


def host_batch(batch: int) -> dict[str, np.ndarray]:
    return {
        "waveforms": (32767 * make_waveforms(batch)).astype(np.int16),
        "lengths": np.full(batch, SAMPLES, np.int32),
        "labels": np.random.default_rng(1).integers(0, SPEAKERS, batch).astype(np.int32),
    }


def test_embeddings_equal_those_of_the_cpu():
    """The bounds for float32 between backends are 1e-4 of the largest value and a cosine of 0.999999."""
    variables = functional.init(MODEL, jax.random.key(0))
    inputs = (variables, make_waveforms(4), np.array([SAMPLES, SAMPLES // 2, SAMPLES, 20_000], np.int32))
    here, there = (
        np.asarray(jax.jit(functional.embed, static_argnums=0)(MODEL, *jax.device_put(inputs, device)))
        for device in (jax.local_devices()[0], jax.local_devices(backend="cpu")[0])
    )
    error = float(np.abs(here - there).max() / np.abs(there).max())
    cosine = float(np.min(np.sum(here * there, 1) / np.linalg.norm(here, axis=1) / np.linalg.norm(there, axis=1)))
    print(f"{jax.devices()[0].device_kind}: largest error {error:.1e} of the largest value, cosine {cosine:.8f}")
    assert error <= 1e-4
    assert cosine >= 0.999999


def test_gradients_equal_those_of_the_cpu():
    """The bound is 1e-4 of the largest gradient norm, as for float32 against PyTorch."""
    config = TrainConfig(model=shrink(), augment=AugmentConfig())
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=8))
    found = []
    for device in (jax.local_devices()[0], jax.local_devices(backend="cpu")[0]):
        with jax.default_device(device):
            state = jax.device_put(fresh_state(config, SPEAKERS, None), device)
            gradients = jax.jit(compute_gradients, static_argnums=0)(
                StepSetup(config, Clock(1, 100)), {}, state, host_batch(8)
            )
            found.append([np.asarray(leaf) for leaf in jax.tree.leaves(gradients)])
    largest = max(float(np.linalg.norm(leaf)) for leaf in found[1])
    worst = max(float(np.linalg.norm(one - other)) for one, other in zip(*found, strict=True)) / largest
    print(f"{jax.devices()[0].device_kind}: largest difference {worst:.1e} of the largest gradient norm")
    assert worst <= 1e-4


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices or more")
def test_step_on_all_devices_equals_step_on_one_device():
    """One step uses all devices, with the classifier on two; the bound is 1e-4 of the largest weight."""
    n_devices, found = jax.device_count() // 2 * 2, []
    size = 2 * n_devices
    for mesh_config in (MeshConfig(), MeshConfig(data=n_devices // 2, model=2)):
        config = TrainConfig(model=shrink(), augment=AugmentConfig(), mesh=mesh_config)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=size))
        mesh = make_mesh(config)
        rows = batch_rows(size, mesh_size(mesh), 1)
        batch = global_batch(mesh, {name: array[rows] for name, array in host_batch(size).items()}, size)
        plan = StepSetup(config, Clock(1, 100), mesh, SPEAKERS)
        state = compiled_step(plan)({}, fresh_state(config, SPEAKERS, mesh), batch)
        found.append([np.asarray(leaf) for leaf in jax.tree.leaves(state["params"])])
    largest = max(float(np.abs(leaf).max()) for leaf in found[0])
    worst = max(float(np.abs(one - other).max()) for one, other in zip(*found, strict=True)) / largest
    print(f"{n_devices} devices against one: {worst:.1e}")
    assert worst <= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("each", [32, 64])
def test_time_of_a_step_at_full_width(dtype: str, each: int):
    """Prints time per step, speech per second, FLOP/s by cost analysis, and memory (C = 1024, 17 982 speakers, 3 s)."""
    n_devices = jax.device_count()
    config = TrainConfig(model=MODEL, augment=AugmentConfig(), mesh=MeshConfig(data=0))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=each * n_devices),
        step=dataclasses.replace(config.step, dtype=dtype),
    )
    mesh, size = make_mesh(config), each * n_devices
    state = fresh_state(config, 17_982, mesh)
    batch = global_batch(mesh, host_batch(size), size)
    step = compiled_step(StepSetup(config, Clock(1, 100), mesh, 17_982)).lower({}, state, batch).compile()
    for _ in range(3):
        state = step({}, state, batch)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for _ in range(10):
        state = step({}, state, batch)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - began) / 10
    flops = float(step.cost_analysis()["flops"])
    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    print(
        f"{n_devices} x {jax.devices()[0].device_kind}, {dtype}, {each} each: {1000 * seconds:.1f} ms a step, "
        f"{size * 3 / seconds:.0f} speech-s/s, {flops / seconds / 1e12:.1f} TFLOP/s a device, {used / 2**30:.2f} GiB"
    )
    assert int(state["bad_step"]) == -1
