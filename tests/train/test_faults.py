"""Tests of faults during training: killed processes, full disks, damaged files. A resumed run gives equal results."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ecapa_jax.bundle.run_checkpoints import RunCheckpoints
from ecapa_jax.errors import AudioError, BundleError
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.data.prepare import prepare
from ecapa_jax.train.loop import history, train
from ecapa_jax.train.start import CHECKPOINTS
from helpers.training import QuietProgress, assert_equal_runs, state_of, stop_after, train_and_kill


def unfinished_saves(directory: Path) -> list[Path]:
    return list((directory / CHECKPOINTS).glob("*orbax-checkpoint-tmp*"))


def test_run_killed_during_a_save_resumes_exactly(config, finished, tmp_path):
    assert train_and_kill(config, tmp_path / "run", lambda run: bool(unfinished_saves(run)))
    assert unfinished_saves(tmp_path / "run")
    assert train(config, tmp_path / "run", QuietProgress()).finished
    assert not unfinished_saves(tmp_path / "run")
    assert_equal_runs(config, tmp_path / "run", finished)


@pytest.mark.slow
def test_run_killed_at_random_moments_resumes_exactly(config, finished, tmp_path):
    """The run is killed twelve times: before the first step, between steps, during dev evaluations and saves."""
    draw = random.Random(0)
    at: list[int] = []
    for _ in range(12):
        lines = draw.randrange(7)
        delay = draw.uniform(0, 0.5)
        passed: list[float] = []

        def moment(run: Path, lines: int = lines, delay: float = delay, passed: list[float] = passed) -> bool:
            if not passed and (run / "run.json").exists() and len(history(run)) >= lines:
                passed.append(time.monotonic() + delay)
            return bool(passed) and time.monotonic() >= passed[0]

        if not train_and_kill(config, tmp_path / "run", moment):
            break
        at.append(max((line["step"] for line in history(tmp_path / "run")), default=0))
    print(f"killed {len(at)} times, with metrics up to step {at}")
    assert len(at) >= 3
    assert train(config, tmp_path / "run", QuietProgress()).finished
    assert_equal_runs(config, tmp_path / "run", finished)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mounts a file system of this size at `folder`, or skips the test if that is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.name != "posix" or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here: needs root on Linux")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def collect_failed_writes() -> Iterator[None]:
    """Collects the garbage of Orbax's failed writes within the test that causes them."""
    yield
    gc.collect()


@pytest.mark.usefixtures("collect_failed_writes")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_full_disk_is_reported_and_the_run_resumes(config, finished, tmp_path):
    with small_disk(tmp_path / "disk", "8m"):
        run, ballast = tmp_path / "disk" / "run", tmp_path / "disk" / "ballast"
        assert not train(config, run, QuietProgress(), stop_after(5)).finished
        free = shutil.disk_usage(run).free
        ballast.write_bytes(bytes(free - 40_000))
        with pytest.raises((BundleError, OSError), match=r"can't be written .*free space|No space left"):
            train(config, run, QuietProgress())
        ballast.unlink()
        assert state_of(config, run)[0] == 5
        assert train(config, run, QuietProgress()).finished
        assert_equal_runs(config, run, finished)


def flip_bytes(folder: Path) -> None:
    """Damages the array files of a checkpoint."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert files
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x55
        path.write_bytes(content)


def test_damaged_checkpoint_is_skipped(config, finished, tmp_path):
    train(config, tmp_path / "run", QuietProgress(), stop_after(7))
    steps = sorted(int(path.name) for path in (tmp_path / "run" / CHECKPOINTS).iterdir() if path.name.isdigit())
    assert steps == [5, 7]
    flip_bytes(tmp_path / "run" / CHECKPOINTS / "7")
    watcher = QuietProgress()
    assert train(config, tmp_path / "run", watcher).finished
    assert "checkpoint of step 7" in watcher.notes[0]
    assert "going back" in watcher.notes[0]
    assert watcher.notes[1] == "resumed at step 5"
    assert_equal_runs(config, tmp_path / "run", finished)


def test_failed_checkpoint_write_is_reported(config, tmp_path, monkeypatch):
    """The run ends with one line, and earlier checkpoints are kept."""
    train(config, tmp_path / "run", QuietProgress(), stop_after(5))

    def fail(self: Any, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    import orbax.checkpoint as ocp

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(BundleError, match="No space left"):
        train(config, tmp_path / "run", QuietProgress())
    monkeypatch.undo()
    assert state_of(config, tmp_path / "run")[0] == 5


def config_with_damaged_files(config: TrainConfig, folder: Path, spoil: Callable[[list[Path]], Any]) -> TrainConfig:
    """Returns a run on a collection whose files were changed after the manifest was written."""
    generator = np.random.default_rng(1)
    for speaker in range(5):
        (folder / f"s{speaker}").mkdir(parents=True)
        for utterance in range(1 if speaker == 0 else 3):
            soundfile.write(
                folder / f"s{speaker}" / f"u{utterance}.flac", 0.1 * generator.standard_normal(12000), 16000
            )
    made = prepare(folder, folder.parent / "prepared")
    spoil(sorted(folder.rglob("*.flac")))
    data = dataclasses.replace(config.data, manifest=str(made.manifest))
    return dataclasses.replace(config, data=data, run=dataclasses.replace(config.run, dev_trials="", dev_every=0))


def test_unreadable_files_are_replaced_and_reported(config, tmp_path):
    """One file is truncated, one is missing, and one is not audio. Replacements are the same in every run."""

    def spoil(files: list[Path]) -> None:
        files[1].write_bytes(files[1].read_bytes()[:2000])
        files[2].unlink()
        files[3].write_text("a thesis")

    changed = config_with_damaged_files(config, tmp_path / "speech", spoil)
    watcher = QuietProgress()
    assert train(changed, tmp_path / "one", watcher).finished
    replacements = [note for note in watcher.notes if note.startswith("an unreadable utterance was replaced")]
    assert len(replacements) == 3
    assert train(changed, tmp_path / "other", QuietProgress()).finished
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes() == (tmp_path / "other" / "metrics.jsonl").read_bytes()


def test_run_without_readable_files_fails(config, tmp_path):
    changed = config_with_damaged_files(config, tmp_path / "speech", lambda files: [file.unlink() for file in files])
    with pytest.raises(AudioError, match="consecutive utterances can't be read"):
        train(changed, tmp_path / "run", QuietProgress())


def test_speaker_with_one_utterance_is_a_class(config, tmp_path):
    """If examples are drawn by speaker, this speaker is drawn as often as the others."""
    by_speaker = dataclasses.replace(config, data=dataclasses.replace(config.data, sampler="speakers"))
    changed = config_with_damaged_files(by_speaker, tmp_path / "speech", lambda files: None)
    assert train(changed, tmp_path / "run", QuietProgress()).finished
    centres = state_of(changed, tmp_path / "run")[1]["['params']['centres']"]
    assert centres.shape[0] == 5


def test_best_checkpoint_is_kept_in_a_resumed_run(tmp_path: Path) -> None:
    """The newest checkpoints are kept too. Others with a worse dev EER or without one are removed."""
    state = {"weights": np.arange(3.0)}
    for steps in ({1: 0.3, 2: 0.1, 3: None}, {4: 0.2, 5: None, 6: None, 7: 0.15, 8: None}):
        with RunCheckpoints(tmp_path, keep=2) as checkpoints:
            for step, eer in steps.items():
                checkpoints.save(step, state, {"dev_eer": eer})
            checkpoints.wait()
            assert checkpoints.steps == sorted({2, *list(steps)[-2:]})
