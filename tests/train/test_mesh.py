"""Tests that a step on a mesh of simulated devices equals the step on one device."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from ecapa_jax.errors import TrainingError
from ecapa_jax.train.config import MeshConfig, TrainConfig
from ecapa_jax.train.scale.mesh import DATA, MODEL, batch_rows, count_padded_speakers, make_mesh
from ecapa_jax.train.schedules import Clock
from ecapa_jax.train.start import abstract_state
from ecapa_jax.train.step import StepSetup, train_step
from helpers.mesh_steps import SPEAKERS, config_of, host_batches

PROGRAM = Path(__file__).parents[1] / "helpers" / "mesh_steps.py"


def on_eight_devices(*cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the report of each case, from unoptimized programs, because compiling takes most of the time."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(PROGRAM), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check_equal(report: dict[str, Any]) -> None:
    """Checks the differences: 1e-5 after one step and 1e-4 after 20, relative to the largest value of each part."""
    first, last = report["differences"]
    print(f"after 1 step {max(first.values()):.1e}, after 20 {max(last.values()):.1e}")
    assert max(first.values()) <= 1e-5
    assert max(last.values()) <= 1e-4
    assert report["bad_step"] == -1
    assert report["restored"] == [True, True, True]


def check_program(report: dict[str, Any], data: int, model: int) -> None:
    """Checks that embeddings, but not the classifier, are sent along the model axis, and that no work is repeated."""
    assert len(report["pieces"]) >= 2  # classifier and its momentum
    assert set(map(tuple, report["pieces"].values())) == {(report["rows"][0] // model,)}
    shares = 16 // data  # rows of one part of the classifier
    gathered = [tuple(shape) for kind, shape in report["collectives"] if kind == "all-gather"]
    if model > 1:
        assert (shares, 16) in gathered
        assert any(kind == "reduce-scatter" for kind, _ in report["collectives"])
    # These are labels, embeddings, and the three nearest speakers of each part.
    assert set(gathered) <= {(shares,), (shares, 16), (shares, min(3, report["rows"][0] // model) * model)}
    assert any(kind == "all-reduce" for kind, _ in report["collectives"])
    alone, each = report["flops"]
    print(f"FLOPs of a device, times devices, over those of one: {8 * each / alone:.3f}")
    assert 8 * each <= 1.05 * alone


def test_two_by_four_mesh_equals_one_device() -> None:
    """The run has sub-centres, inter-top-K, augmentation, clipping, moving average, 13 speakers and 3 padding rows."""
    (report,) = on_eight_devices({"mesh": {"data": 2, "model": 4}})
    assert report["rows"] == [16, 2, 16]
    check_equal(report)
    check_program(report, 2, 4)


@pytest.mark.slow
def test_distillation_on_two_by_four_mesh_equals_one_device() -> None:
    """The run has every loss against a table's embeddings, and the classifier loss of rows with a speaker."""
    teacher = {"embeddings": "table", "relations": 5.0, "contrast": 0.2, "labels": 0.5}
    (report,) = on_eight_devices({"mesh": {"data": 2, "model": 4}, "teacher": teacher})
    check_equal(report)


@pytest.mark.slow
def test_other_meshes_equal_one_device() -> None:
    grids = ((8, 1), (2, 4), (1, 8))
    for grid, report in zip(
        grids, on_eight_devices(*({"mesh": {"data": data, "model": model}} for data, model in grids)), strict=True
    ):
        print(grid)
        check_equal(report)
        check_program(report, *grid)


@pytest.mark.slow
def test_other_step_settings_on_a_mesh_equal_one_device() -> None:
    """The cases have micro-batches, losses without sub-centres, recomputed activations, and AdamW."""
    grid = {"data": 2, "model": 4}
    plain = {"sub_centres": 1, "top_k": 0}
    cases = [
        {"mesh": grid, "step": {"micro_batches": 2}},
        {"mesh": grid, "step": {"rematerialize": True}, "loss": plain},
        {"mesh": grid, "loss": {"kind": "am", "sub_centres": 1}},
        {"mesh": grid, "loss": {"kind": "softmax", "sub_centres": 3, "top_k": 0}},
        # Unclipped steps are large. At the learning rate of the other cases, or a quarter of it, a change of the
        # weights by 1e-7 changes even the run on one device by 0.1, at a step where the input of a ReLU changes sign.
        {"mesh": grid, "loss": {**plain, "fallback": "sine"}, "optim": {"clip_norm": 0.0, "ema": 0.0, "peak": 1e-4}},
    ]
    for case, report in zip(cases, on_eight_devices(*cases), strict=True):
        print(case)
        check_equal(report)


@pytest.mark.slow
def test_batch_statistics_per_replica() -> None:
    """Statistics per replica give another training with fewer messages, which must not diverge."""
    every, own = on_eight_devices(
        {"mesh": {"data": 8, "model": 1}}, {"mesh": {"data": 8, "model": 1, "batch_norm": "replica"}}
    )
    assert max(own["differences"][0].values()) > 1e-3
    assert own["bad_step"] == -1
    assert len(own["collectives"]) < len(every["collectives"])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 5))
def test_each_device_has_a_share_of_each_micro_batch(n_devices: int, n_parts: int, each: int) -> None:
    size = n_devices * n_parts * each
    rows = batch_rows(size, n_devices, n_parts)
    assert sorted(rows) == list(range(size))
    for own in np.split(rows, n_devices):
        for part, share in enumerate(np.split(own, n_parts)):
            assert set(share // (size // n_parts)) == {part}
    np.testing.assert_array_equal(batch_rows(size, n_devices, 1), np.arange(size))


@pytest.mark.parametrize(
    ("mesh", "batch", "words"),
    [
        (MeshConfig(data=64), 256, "are 64 devices, but there are 1: change them"),
        (MeshConfig(model=3), 256, "are 3 devices"),
    ],
)
def test_invalid_mesh_or_batch_is_reported(mesh: MeshConfig, batch: int, words: str) -> None:
    config = TrainConfig()
    config = dataclasses.replace(config, mesh=mesh, data=dataclasses.replace(config.data, batch_size=batch))
    with pytest.raises(TrainingError, match=words):
        make_mesh(config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rematerialize", [False, True])
def test_every_dtype_can_be_sharded(dtype: str, rematerialize: bool) -> None:
    """JAX checks without computing that values which differ between devices are summed if they must be equal."""
    config = config_of({"step": {"dtype": dtype, "rematerialize": rematerialize}})
    kinds = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((1, 1), (DATA, MODEL), kinds, devices=jax.devices()[:1])
    state = abstract_state(config, SPEAKERS, None)
    banks = {"rooms": jax.ShapeDtypeStruct((2, 800), np.float32)}
    batch = host_batches()[0]
    after = jax.eval_shape(
        functools.partial(train_step, StepSetup(config, Clock(1, 100), mesh, SPEAKERS)), banks, state, batch
    )
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )


@pytest.mark.slow
def test_bfloat16_on_a_mesh_equals_one_device_within_rounding() -> None:
    """Split sums round differently: the bound is 1e-2 of the largest value. The number of messages is equal."""
    (report,) = on_eight_devices({"mesh": {"data": 2, "model": 4}, "step": {"dtype": "bfloat16"}})
    first, last = report["differences"]
    print(f"after 1 step {first}, after 20 {last}")
    assert max(first.values()) <= 1e-2
    assert report["bad_step"] == -1
    check_program(report, 2, 4)


def test_one_device_needs_no_mesh() -> None:
    assert make_mesh(TrainConfig()) is None
    assert count_padded_speakers(None, 13) == 13
