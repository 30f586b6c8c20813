"""Tests of the training loop with a tiny network: exact resumption, damaged files, clear errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import jax
import numpy as np
import pytest

import ecapa_jax
from ecapa_jax.bundle.run_checkpoints import RunCheckpoints
from ecapa_jax.errors import TrainingError
from ecapa_jax.train import loop
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.data.manifest import read_manifest, write_manifest
from ecapa_jax.train.dev import DevTrials
from ecapa_jax.train.loop import train
from ecapa_jax.train.schedules import Clock
from ecapa_jax.train.start import start
from ecapa_jax.train.state import init_state
from ecapa_jax.train.step import StepSetup, compiled_step
from helpers.training import STEPS, QuietProgress, assert_equal_runs, state_of, stop_after


@pytest.mark.parametrize("after", [(1,), (4, 3)])
def test_stopped_run_resumes_exactly(config, finished, tmp_path, after):
    """Weights, optimizer, moving average, statistics and metrics file are identical after any stop."""
    for steps in after:
        assert not train(config, tmp_path / "run", QuietProgress(), stop_after(steps)).finished
    assert train(config, tmp_path / "run", QuietProgress()).finished
    assert_equal_runs(config, tmp_path / "run", finished)


def test_crashed_run_resumes_exactly(config, finished, tmp_path, monkeypatch):
    """As after kill -9, metrics were written after the last checkpoint and are written again."""
    evaluate, calls = DevTrials.evaluate, []

    def crash(self: Any, variables: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(self, variables)

    monkeypatch.setattr(DevTrials, "evaluate", crash)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", QuietProgress())
    assert max(line["step"] for line in loop.history(tmp_path / "run")) == STEPS
    monkeypatch.undo()
    watcher = QuietProgress()
    assert train(config, tmp_path / "run", watcher).finished
    assert any("resumed at step 10" in note for note in watcher.notes)
    assert_equal_runs(config, tmp_path / "run", finished)


def test_finished_run_has_its_files(config, finished):
    lines = loop.history(finished)
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 9, 12]
    assert [line["step"] for line in lines if "dev_eer" in line] == [6, 12]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    timings = [json.loads(line) for line in (finished / "timings.jsonl").read_text().splitlines()]
    assert all(line["speech_seconds_per_second"] > 0 and 0 <= line["starvation"] <= 1 for line in timings)
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").iterdir())
    encoder = ecapa_jax.load(finished / "bundle")
    _, state = state_of(config, finished)
    kernel = encoder.variables["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, state["['average']['params']['stem']['conv']['kernel']"])
    assert encoder.scorer.scoring.threshold == pytest.approx(np.clip(encoder.scorer.scoring.threshold, -1, 1))


def test_best_checkpoint_has_a_bundle_if_it_is_not_the_last(config, tmp_path, monkeypatch):
    """The dev EER is set to 10 % at step 6, 20 % at step 12, and 10 % for the restored checkpoint."""
    evaluate, eers = DevTrials.evaluate, iter([0.1, 0.2, 0.1, 0.1])
    monkeypatch.setattr(
        DevTrials,
        "evaluate",
        lambda self, variables: dataclasses.replace(evaluate(self, variables), eer=next(eers)),
    )
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, save_every=6, keep=1))
    result = train(config, tmp_path / "run", QuietProgress())
    assert (result.bundle, result.best_bundle) == (tmp_path / "run" / "bundle", tmp_path / "run" / "best_bundle")
    assert (result.dev.eer, result.best_dev.eer) == (0.2, 0.1)
    document = json.loads((result.best_bundle / "model.json").read_text())
    assert document["provenance"]["training"]["steps"] == 6
    assert document["scoring"]["threshold"] == pytest.approx(np.clip(result.best_dev.threshold, -1, 1))
    assert not train(config, tmp_path / "stopped", QuietProgress(), stop_after(6)).finished
    _, state = state_of(config, tmp_path / "stopped")
    kernel = ecapa_jax.load(result.best_bundle).variables["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, state["['average']['params']['stem']['conv']['kernel']"])


def test_damaged_best_checkpoint_only_omits_its_bundle(config, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(RunCheckpoints, "best_step", property(lambda self: 3))
    shutil.copytree(finished, tmp_path / "run")
    watcher = QuietProgress()
    result = train(config, tmp_path / "run", watcher)
    assert result.bundle is not None
    assert result.best_bundle is None
    assert any("no best_bundle: the checkpoint of step 3 can't be read" in note for note in watcher.notes)


def test_finished_run_does_not_train_again(config, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    assert train(config, finished, QuietProgress()).finished
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_non_finite_loss_stops_the_run(config, tmp_path):
    """The error names step and batch. The previous checkpoint is kept with the weights before the step."""
    wild = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, peak=1e30, clip_norm=0.0, schedule="constant")
    )
    with pytest.raises(TrainingError, match=r"step \d+ is not finite; its batch: s\d/u\d") as caught:
        train(wild, tmp_path / "run", QuietProgress())
    step = int(str(caught.value).split("step ")[1].split()[0])
    named = (tmp_path / "run" / f"bad_batch_step_{step}.txt").read_text().split()
    assert len(named) == 4


def test_state_does_not_change_after_a_non_finite_step(config):
    plan = StepSetup.of(config, Clock(1, STEPS))
    state = init_state(config, 5)
    wave = np.random.default_rng(0).standard_normal((4, 8000)).astype(np.float32)
    batch = {"waveforms": wave, "lengths": np.full(4, 8000, np.int32), "labels": np.arange(4, dtype=np.int32)}
    banks = {"rooms": np.eye(2, 800, dtype=np.float32)}
    bad = {**batch, "waveforms": np.where(wave > 3, np.nan, wave)}
    before = loop.weights(state["params"])
    step = compiled_step(plan)
    state = step(banks, state, bad)
    assert int(state["bad_step"]) == 0
    state = step(banks, state, batch)
    assert (int(state["bad_step"]), int(state["step"])) == (0, 2)
    after = loop.weights(state["params"])
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_directory_of_another_run_is_refused(config, finished, tmp_path):
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, peak=0.1))
    with pytest.raises(TrainingError, match=r"another optim.peak"):
        train(other, finished, QuietProgress())
    faster = dataclasses.replace(config, data=dataclasses.replace(config.data, threads=1))
    assert train(faster, finished, QuietProgress()).finished
    rows = [
        {"id": f"u{i}", "path": f"u{i}.wav", "start": 0, "samples": 9000, "speaker": f"s{i % 5}"} for i in range(15)
    ]
    write_manifest(tmp_path / "other.parquet", rows, 16000)
    elsewhere = dataclasses.replace(
        config, data=dataclasses.replace(config.data, manifest=str(tmp_path / "other.parquet"))
    )
    with pytest.raises(TrainingError, match="on other data"):
        train(elsewhere, finished, QuietProgress())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(TrainingError, match="is not a run directory"):
        train(config, tmp_path / "mine", QuietProgress())


def test_two_processes_do_not_share_a_directory(config, finished):
    with loop._lock_directory(finished), pytest.raises(TrainingError, match="in use"):
        train(config, finished, QuietProgress())


def test_initial_run_gives_its_classifier_rows_by_speaker_name(config, finished, tmp_path):
    """The second stage has no speeds, another order of speakers, and one new speaker."""
    rows = [
        {"id": f"{name}{i}", "path": f"{name}{i}.wav", "start": 0, "samples": 9000, "speaker": name, "sha256": ""}
        for name in ("s4", "new", "s0")
        for i in range(3)
    ]
    write_manifest(tmp_path / "m.parquet", rows, 16000)
    manifest = read_manifest(tmp_path / "m.parquet")
    stage = dataclasses.replace(config, start=dataclasses.replace(config.start, run=str(finished)))
    with RunCheckpoints(tmp_path / "checkpoints", 1) as checkpoints:
        state = loop.weights(start(stage, manifest, checkpoints).state)
    _, before = state_of(config, finished)
    centres, old = state["['params']['centres']"], before["['params']['centres']"]
    assert manifest.speakers == ("new", "s0", "s4")
    np.testing.assert_array_equal(centres[1:], old[[0, 4]])
    assert not any(np.array_equal(centres[0], row) for row in old)
    name = "['params']['network']['stem']['conv']['kernel']"
    np.testing.assert_array_equal(state[name], before[name])


def test_initial_bundle_gives_its_network(config, finished, tmp_path):
    stage = dataclasses.replace(config, start=dataclasses.replace(config.start, bundle=str(finished / "bundle")))
    manifest = read_manifest(config.data.manifest)
    with RunCheckpoints(tmp_path / "checkpoints", 1) as checkpoints:
        found = start(stage, manifest, checkpoints)
    encoder = ecapa_jax.load(finished / "bundle")
    np.testing.assert_array_equal(
        found.state["params"]["network"]["stem"]["conv"]["kernel"],
        encoder.variables["params"]["stem"]["conv"]["kernel"],
    )
    wrong = dataclasses.replace(stage, model=TrainConfig().model)
    with (
        RunCheckpoints(tmp_path / "checkpoints", 1) as checkpoints,
        pytest.raises(TrainingError, match="is not the model of section"),
    ):
        start(wrong, manifest, checkpoints)


@pytest.fixture(scope="module")
def one_step(config):
    """Returns a function that computes the weights after one small step on a batch of noise with these settings."""
    calm = dataclasses.replace(
        config, augment=type(config.augment)(), loss=type(config.loss)(kind="softmax", scale=5.0)
    )
    wave = np.random.default_rng(0).standard_normal((4, 8000)).astype(np.float32)
    batch = {"waveforms": wave, "lengths": np.full(4, 8000, np.int32), "labels": np.arange(4, dtype=np.int32)}

    def run(**settings):
        changed = dataclasses.replace(calm, step=dataclasses.replace(calm.step, **settings))
        state = compiled_step(StepSetup.of(changed, Clock(1, STEPS)))({}, init_state(changed, 5), batch)
        return loop.weights(state["params"])

    return run


@pytest.fixture(scope="module")
def plain_step(one_step):
    return one_step()


@pytest.mark.parametrize("change", [{"micro_batches": 2}, {"rematerialize": True}, {"dtype": "bfloat16"}])
def test_settings_for_computing_a_step_hardly_change_it(one_step, plain_step, change):
    """Rematerialization gives the same step; bfloat16 and micro-batches (with other batch norms) give a similar one."""
    plain, other = plain_step, one_step(**change)
    worst = max(float(np.abs(plain[name] - other[name]).max()) for name in plain)
    print(f"{change}: largest difference of a weight after one step {worst:.1e}")
    assert all(leaf.dtype == np.float32 for leaf in other.values())
    assert worst <= (1e-7 if "rematerialize" in change else 1e-4)
    assert jax.tree.leaves(other)
