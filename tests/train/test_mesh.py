"""A step on a mesh of fake devices equals the step on one."""

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
    """The report of each case; unoptimised code, because compiling is what takes the time."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(PROGRAM), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check_equal(report: dict[str, Any]) -> None:
    """1e-5 after a step, 1e-4 after twenty, of the largest value of each part of the state."""
    first, last = report["differences"]
    print(f"after 1 step {max(first.values()):.1e}, after 20 {max(last.values()):.1e}")
    assert max(first.values()) <= 1e-5
    assert max(last.values()) <= 1e-4
    assert report["bad_step"] == -1
    assert report["restored"] == [True, True, True]


def check_program(report: dict[str, Any], data: int, model: int) -> None:
    """Embeddings travel along the model axis, the classifier never does, and no device repeats another's backbone."""
    assert len(report["pieces"]) >= 2  # the classifier and its momentum
    assert set(map(tuple, report["pieces"].values())) == {(report["rows"][0] // model,)}
    shares = 16 // data  # rows that one part of the classifier sees
    gathered = [tuple(shape) for kind, shape in report["collectives"] if kind == "all-gather"]
    if model > 1:
        assert (shares, 16) in gathered
        assert any(kind == "reduce-scatter" for kind, _ in report["collectives"])
    # Labels, embeddings, and each part's three nearest speakers.
    assert set(gathered) <= {(shares,), (shares, 16), (shares, min(3, report["rows"][0] // model) * model)}
    assert any(kind == "all-reduce" for kind, _ in report["collectives"])
    alone, each = report["flops"]
    print(f"FLOPs of a device, times devices, over those of one: {8 * each / alone:.3f}")
    assert 8 * each <= 1.05 * alone


def test_two_by_four_is_one_device() -> None:
    """Sub-centres, inter-top-K, augmentation, clipping, moving average; 13 speakers and three rows of padding."""
    (report,) = on_eight_devices({"mesh": {"data": 2, "model": 4}})
    assert report["rows"] == [16, 2, 16]
    check_equal(report)
    check_program(report, 2, 4)


@pytest.mark.slow
def test_distillation_on_two_by_four_is_one_device() -> None:
    """Every loss against a table's embeddings, and the speakers of those rows that have one."""
    teacher = {"embeddings": "table", "relations": 5.0, "contrast": 0.2, "labels": 0.5}
    (report,) = on_eight_devices({"mesh": {"data": 2, "model": 4}, "teacher": teacher})
    check_equal(report)


@pytest.mark.slow
def test_other_grids_are_one_device() -> None:
    grids = ((8, 1), (2, 4), (1, 8))
    for grid, report in zip(
        grids, on_eight_devices(*({"mesh": {"data": data, "model": model}} for data, model in grids)), strict=True
    ):
        print(grid)
        check_equal(report)
        check_program(report, *grid)


@pytest.mark.slow
def test_other_ways_of_a_step_are_one_device() -> None:
    """Micro-batches hold the same examples; losses without sub-centres; recomputed activations; AdamW."""
    grid = {"data": 2, "model": 4}
    plain = {"sub_centres": 1, "top_k": 0}
    cases = [
        {"mesh": grid, "step": {"micro_batches": 2}},
        {"mesh": grid, "step": {"rematerialize": True}, "loss": plain},
        {"mesh": grid, "loss": {"kind": "am", "sub_centres": 1}},
        {"mesh": grid, "loss": {"kind": "softmax", "sub_centres": 3, "top_k": 0}},
        # Unclipped steps are large: at the others' rate, or a quarter of it, one device drifts as far from itself (0.1)
        # when its weights change by 1e-7, at the same step, where a rectifier turns over.
        {"mesh": grid, "loss": {**plain, "fallback": "sine"}, "optim": {"clip_norm": 0.0, "ema": 0.0, "peak": 1e-4}},
    ]
    for case, report in zip(cases, on_eight_devices(*cases), strict=True):
        print(case)
        check_equal(report)


@pytest.mark.slow
def test_statistics_of_each_replica() -> None:
    """Another training, with fewer messages; it must not diverge."""
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
def test_what_does_not_fit_is_reported(mesh: MeshConfig, batch: int, words: str) -> None:
    config = TrainConfig()
    config = dataclasses.replace(config, mesh=mesh, data=dataclasses.replace(config.data, batch_size=batch))
    with pytest.raises(TrainingError, match=words):
        make_mesh(config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rematerialize", [False, True])
def test_every_dtype_can_be_spread(dtype: str, rematerialize: bool) -> None:
    """JAX checks, without computing, that what differs between devices is summed where it must not."""
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
def test_bfloat16_is_one_device_but_for_its_rounding() -> None:
    """Rounding differs where sums are split: 1e-2 of the largest value after a step; the same number of messages."""
    (report,) = on_eight_devices({"mesh": {"data": 2, "model": 4}, "step": {"dtype": "bfloat16"}})
    first, last = report["differences"]
    print(f"after 1 step {first}, after 20 {last}")
    assert max(first.values()) <= 1e-2
    assert report["bad_step"] == -1
    check_program(report, 2, 4)


def test_one_device_is_no_mesh() -> None:
    assert make_mesh(TrainConfig()) is None
    assert count_padded_speakers(None, 13) == 13
