"""Training steps on meshes of simulated CPU devices: `python mesh_steps.py CASES` prints a line for each case.

The number of devices must be set before jax is imported, so the tests run this file as a separate process.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax.bundle.run_checkpoints import RunCheckpoints
from ecapa_jax.train.config import MeshConfig, TrainConfig
from ecapa_jax.train.data.manifest import UNNAMED
from ecapa_jax.train.scale.hlo import find_collectives
from ecapa_jax.train.scale.mesh import batch_rows, global_batch, make_mesh, mesh_size, replicate
from ecapa_jax.train.schedules import Clock
from ecapa_jax.train.settings import build_config
from ecapa_jax.train.start import abstract_state, fresh_state
from ecapa_jax.train.step import StepSetup, compiled_step

SPEAKERS, BATCH, SAMPLES, STEPS = 13, 16, 6400, 20

DOCUMENT: dict[str, Any] = {
    "model": {
        "ecapa": {
            "channels": [8, 8], "kernel_sizes": [5, 3], "dilations": [2], "res2_scale": 2, "mfa_channels": 8,
            "se_channels": 8, "attention_channels": 8, "embedding_dim": 16,
        }
    },
    "data": {"batch_size": BATCH, "crop_seconds": SAMPLES / 16000},
    "augment": {"probability": 0.5, "rooms": 2, "spec_time": 1, "spec_frequency": 1},
    "loss": {"sub_centres": 2, "top_k": 3, "scale": 20.0},
    "optim": {"peak": 0.002, "floor": 1e-4, "clip_norm": 5.0, "ema": 0.9},
}  # fmt: skip


def config_of(changes: dict[str, dict[str, Any]]) -> TrainConfig:
    """Returns the tiny run with some values of its sections changed."""
    sections = DOCUMENT.keys() | changes.keys()
    return build_config({name: {**DOCUMENT.get(name, {}), **changes.get(name, {})} for name in sections})


def host_batches(with_targets: bool = False) -> list[dict[str, np.ndarray]]:
    """Returns the same batches on every call, optionally with a teacher's embeddings."""
    generator, teacher = np.random.default_rng(0), np.random.default_rng(2)
    batches = [
        {
            "waveforms": (3000 * generator.standard_normal((BATCH, SAMPLES))).astype(np.int16),
            "lengths": np.full(BATCH, SAMPLES, np.int32),
            "labels": generator.integers(0, SPEAKERS, BATCH).astype(np.int32),
        }
        for _ in range(STEPS)
    ]
    for batch in batches if with_targets else ():
        batch["targets"] = teacher.standard_normal((BATCH, 16)).astype(np.float32)
        batch["labels"][::5] = UNNAMED
    return batches


@dataclasses.dataclass
class Run:
    """The states after the first and the last step, as arrays by name without padding, and the objects of the run."""

    config: TrainConfig
    taken: list[dict[str, np.ndarray]]
    compiled: Any
    state: Any


def run(changes: dict[str, dict[str, Any]]) -> Run:
    """Trains for some steps."""
    config = config_of(changes)
    mesh = make_mesh(config)
    generator = np.random.default_rng(1)
    rooms = generator.standard_normal((2, 800)) * np.exp(-np.arange(800) / 100)
    banks = replicate(mesh, {"rooms": rooms.astype(np.float32)})
    state = fresh_state(config, SPEAKERS, mesh)
    order = batch_rows(BATCH, mesh_size(mesh), config.step.micro_batches)
    taken, compiled = [], None
    for step, rows in enumerate(host_batches(config.teacher.is_used), 1):
        batch = global_batch(mesh, {name: array[order] for name, array in rows.items()}, BATCH)
        if compiled is None:
            plan = StepSetup(config, Clock(1, 100), mesh, SPEAKERS)
            compiled = compiled_step(plan).lower(banks, state, batch).compile()
        state = compiled(banks, state, batch)
        if step in (1, STEPS):
            taken.append(arrays(state))
    return Run(config, taken, compiled, state)


def arrays(state: Any) -> dict[str, np.ndarray]:
    """Returns every array by its name; classifier arrays have only the rows of real speakers."""
    named = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {name: array[:SPEAKERS] if "centres" in name else array for name, array in named.items()}


def differences(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the largest difference in each part of a state, relative to the part's largest value."""
    assert one.keys() == other.keys()
    parts = {name.split("]")[0][2:-1] for name in one} - {"step", "bad_step", "constants"}
    found = {}
    for part in sorted(parts):
        names = [name for name in one if name.startswith(f"['{part}']")]
        largest = max(float(np.abs(one[name]).max()) for name in names)
        found[part] = max(float(np.abs(one[name] - other[name]).max()) for name in names) / largest
    return found


def restored(run: Run, meshes: list[dict[str, int]]) -> list[bool]:
    """Returns, for each mesh, whether a saved state is restored bit for bit on it."""
    found = []
    with tempfile.TemporaryDirectory() as folder, RunCheckpoints(Path(folder), 1) as checkpoints:
        checkpoints.save(STEPS, run.state, {})
        checkpoints.wait()
        for mesh in meshes:
            there = make_mesh(dataclasses.replace(run.config, mesh=MeshConfig(**mesh)))
            state, _ = checkpoints.restore(STEPS, abstract_state(run.config, SPEAKERS, there))
            same = arrays(state)
            devices = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)}
            whole = devices == {mesh_size(there)}
            found.append(whole and all(np.array_equal(same[name], array) for name, array in run.taken[-1].items()))
    return found


def pieces(state: Any) -> dict[str, list[int]]:
    """Returns the number of rows per device of the classifier weights and of their optimizer states."""
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {
        name: sorted({shard.data.shape[0] for shard in leaf.addressable_shards})
        for name, leaf in named.items()
        if leaf.shape == state["params"]["centres"].shape
    }


def report(case: dict[str, Any], alone: Run) -> dict[str, Any]:
    """Compares a case with the run on one device."""
    spread = run(case)
    return {
        "differences": [differences(*pair) for pair in zip(alone.taken, spread.taken, strict=True)],
        "flops": [float(program.cost_analysis()["flops"]) for program in (alone.compiled, spread.compiled)],
        "collectives": [[kind, list(shape)] for kind, shape, *_ in find_collectives(spread.compiled.as_text())],
        "bad_step": int(spread.state["bad_step"]),
        "rows": list(spread.state["params"]["centres"].shape),
        "pieces": pieces(spread.state),
        "restored": restored(spread, [{"data": 1, "model": 1}, {"data": 1, "model": 2}, {"data": 2, "model": 2}]),
    }


if __name__ == "__main__":
    references: dict[str, Run] = {}
    for case in json.loads(sys.argv[1]):
        plain = {name: section for name, section in case.items() if name != "mesh"}
        key = json.dumps(plain)
        if key not in references:
            references[key] = run(plain)
        print(json.dumps(report(case, references[key])), flush=True)
