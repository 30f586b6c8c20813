"""The training loop, top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from ecapa_jax.bundle.run_checkpoints import RunCheckpoints
from ecapa_jax.errors import BundleError, TrainingError
from ecapa_jax.functional import Variables
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.data.manifest import UNNAMED, TrainingManifest, check_installed, read_manifest
from ecapa_jax.train.data.order import Order
from ecapa_jax.train.data.pipeline import Batches, Loader, Rows
from ecapa_jax.train.dev import DevResult, dev_trials
from ecapa_jax.train.finish import final_bundle
from ecapa_jax.train.record import METRICS, Record, plain, plot_curves, read_lines
from ecapa_jax.train.rooms import room_bank
from ecapa_jax.train.scale.mesh import global_batch, make_mesh, mesh_size, process_rows, replicated
from ecapa_jax.train.scale.processes import any_process, is_first, on_first
from ecapa_jax.train.schedules import Clock, learning_rate, margin
from ecapa_jax.train.start import CHECKPOINTS, Start, abstract_state, claim, count_classes, start
from ecapa_jax.train.state import State, model_variables, zero_sums
from ecapa_jax.train.step import StepSetup, compiled_step
from ecapa_jax.train.teacher import TeacherBundle, TeacherTable, read_teacher

BUNDLE, BEST_BUNDLE = "bundle", "best_bundle"

AGREE_EVERY = 10
"""Steps between the questions of several processes to each other whether one of them was asked to stop."""


@runtime_checkable
class Watcher(Protocol):
    """What a run reports to; the command line draws a progress bar."""

    def note(self, text: str) -> None:
        """A remark."""

    def progress(self, step: int, total: int, line: dict[str, Any]) -> None:
        """Steps done, and the newest figures."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      step: steps done.
      finished: False where it was asked to stop; run again to go on.
      bundle: the trained model, when finished.
      dev: the last dev evaluation.
      best_bundle: the model of an earlier checkpoint, where that one was better on the dev trials.
      best_dev: its evaluation.
    """

    step: int
    finished: bool
    bundle: Path | None = None
    dev: DevResult | None = None
    best_bundle: Path | None = None
    best_dev: DevResult | None = None


def train(config: TrainConfig, directory: Path, watcher: Watcher, stop: Callable[[], bool] = lambda: False) -> Result:
    """Trains, or goes on training, in a directory.

    Args:
      config: the run.
      directory: made if need be; a run of the same configuration in it is resumed from its newest whole checkpoint.
      watcher: is told of progress.
      stop: asked after every step; when it says True, the state is saved and the run ends.

    Raises:
      TrainingError: the directory is in use or another run's; a loss is not finite.
      ConfigError, AudioError, BundleError: what is named can't be used; a checkpoint can't be written.
    """
    check_installed("pyarrow", "grain")
    mesh = make_mesh(config)
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        on_first(lambda: held.enter_context(_claimed(directory)))
        manifest = read_manifest(config.data.manifest)
        _check_manifest(config, manifest)
        teacher = read_teacher(config, manifest)
        on_first(lambda: claim(directory, config, manifest, teacher.digest if teacher else ""))
        checkpoints = held.enter_context(RunCheckpoints(directory / CHECKPOINTS, config.run.keep))
        begin = start(config, manifest, checkpoints, mesh)
        for note in (*begin.notes, *_idle(mesh)) if is_first() else ():
            watcher.note(note)
        watcher = watcher if is_first() else _Elsewhere(watcher)
        return _Run(config, directory, manifest, teacher, checkpoints, begin, watcher, mesh).go(stop)


def _idle(mesh: Mesh | None) -> list[str]:
    used, there = mesh_size(mesh), len(jax.devices())
    return [f"{used} of {there} devices used; mesh.data=0 takes all"] if used < there else []


class _Elsewhere:
    """Passes on the remarks of a process that is not the first: it alone sees its part of the data."""

    def __init__(self, watcher: Watcher):
        self._watcher = watcher

    def note(self, text: str) -> None:
        self._watcher.note(f"process {jax.process_index()}: {text}")

    def progress(self, step: int, total: int, line: dict[str, Any]) -> None:
        pass


@contextlib.contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise TrainingError(f"{directory} is in use by another training process: wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def _check_manifest(config: TrainConfig, manifest: TrainingManifest) -> None:
    if manifest.rate != config.model.fbank.sample_rate:
        raise TrainingError(
            f"{config.data.manifest} is at {manifest.rate} Hz, the model at {config.model.fbank.sample_rate} Hz: "
            "prepare the data at the model's rate"
        )
    unnamed = int(np.sum(manifest.labels == UNNAMED))
    if unnamed and not config.teacher.is_used:
        raise TrainingError(
            f"{unnamed} utterances of {config.data.manifest} have no speaker: name them, or learn from a teacher "
            "(section [teacher])"
        )
    if config.teacher.is_used and config.teacher.labels and unnamed == len(manifest):
        raise TrainingError(f"teacher.labels: no utterance of {config.data.manifest} has a speaker: set it to 0")


class _Run:
    """One process's part of a run, between start and end."""

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        manifest: TrainingManifest,
        teacher: TeacherTable | TeacherBundle | None,
        checkpoints: RunCheckpoints,
        begin: Start,
        watcher: Watcher,
        mesh: Mesh | None,
    ):
        self.config, self.directory, self.checkpoints, self.watcher = config, directory, checkpoints, watcher
        self.order = Order(config.data, manifest, config.run.seed)
        self.manifest, self.mesh = manifest, mesh
        self.n_classes = count_classes(config, manifest)
        clock = Clock.of(config.run, self.order.steps_per_epoch)
        bundle = teacher if isinstance(teacher, TeacherBundle) else None
        table = teacher if isinstance(teacher, TeacherTable) else None
        self.plan = StepSetup.of(
            config, clock, mesh, 0 if mesh is None else self.n_classes, None if bundle is None else bundle.config
        )
        self.rows = Rows(process_rows(mesh, config.data.batch_size, config.step.micro_batches))
        self.loader = Loader(config.data, config.augment, manifest, self.order, self.rows, table)
        self.batches = Batches(self.loader, self.rows, config.data, begin.step)
        banks: dict[str, Any] = room_bank(config.augment, manifest.rate, config.run.seed)
        self.banks = replicated(mesh, banks if bundle is None else {**banks, "teacher": bundle.arrays})
        self.state, self.step, self.best = begin.state, begin.step, begin.best
        self.dev_name = on_first(lambda: dev_trials(config).name) if config.run.dev_trials else ""
        self.result: DevResult | None = None
        self.record = Record(directory, begin.step) if is_first() else None
        self.problems: set[str] = set()
        self.asked = False

    def go(self, stop: Callable[[], bool]) -> Result:
        """Steps until the end, or until asked to stop."""
        total, take = self.plan.clock.total, compiled_step(self.plan)
        self.began, self.began_step = time.perf_counter(), self.step
        batch = self._next_batch() if self.step < total else None
        stopped = False
        while self.step < total and not stopped:
            self.state = take(self.banks, self.state, batch)
            self.step += 1
            # The next batch travels while the device is busy with this one.
            batch = self._next_batch() if self.step < total else None
            stopped = self._asked(stop)
            last = self.step == total
            if last or self.step % self.config.run.log_every == 0:
                self._log()
            if self.dev_name and self._dev_step():
                self._evaluate()
            if last or stopped or self.step % self.config.run.save_every == 0:
                self._save()
        self.checkpoints.wait()
        if self.record:
            self.record.close()
        return self._ended(self.step == total)

    def _next_batch(self) -> dict[str, jax.Array]:
        batch = {name: array for name, array in next(self.batches).items() if name != "utterances"}
        return global_batch(self.mesh, batch, self.config.data.batch_size)

    def _asked(self, stop: Callable[[], bool]) -> bool:
        """Whether to stop now: with several processes all at the same step, so not at once."""
        self.asked = stop() or self.asked
        if jax.process_count() > 1 and self.step % AGREE_EVERY:
            return False
        return any_process(self.asked)

    def _log(self) -> None:
        """Looks at the device for the first time since the last line."""
        self._check_finite()
        done = self.state["step"] - 1
        sums = self.state["sums"]
        figures = {name: sums[name] / sums["steps"] for name in self._figures()}
        figures["parameter_norm"] = optax.tree.norm(self.state["params"])
        figures["learning_rate"] = learning_rate(self.config.optim, self.plan.clock, done)
        if "accuracy" in figures:
            figures["margin"] = margin(self.config.loss, self.plan.clock, done)
        line = {"step": self.step, **plain(figures)}
        self.state["sums"] = replicated(self.mesh, zero_sums())
        self._write(line)
        self._time(line)
        for name, problem in self.loader.problems.items():
            if name not in self.problems:
                self.watcher.note(f"another utterance was taken: {problem}")
        self.problems.update(self.loader.problems)

    def _figures(self) -> list[str]:
        """The means over steps that say something of this run."""
        teacher = self.config.teacher
        cosine = ["teacher_cosine"] if teacher.is_used and (teacher.cosine or teacher.contrast) else []
        accuracy = ["accuracy"] if teacher.labels or not teacher.is_used else []
        return ["loss", *accuracy, *cosine, "gradient_norm"]

    def _write(self, line: dict[str, Any]) -> None:
        if self.record:
            self.record.metrics(line)

    def _time(self, line: dict[str, Any]) -> None:
        now = time.perf_counter()
        seconds, steps = max(now - self.began, 1e-9), self.step - self.began_step
        rate = steps * self.config.data.batch_size * self.config.data.crop_seconds / seconds
        times = {
            "step": self.step,
            "seconds_per_step": seconds / max(steps, 1),
            "speech_seconds_per_second": rate,
            "starvation": self.batches.waited / seconds,
        }
        if self.record:
            self.record.timings(times)
        self.began, self.began_step, self.batches.waited = now, self.step, 0.0
        self.watcher.progress(self.step, self.plan.clock.total, {**line, **times})

    def _check_finite(self) -> None:
        bad = int(self.state["bad_step"])
        if bad < 0:
            return
        ids = [self.manifest.ids[self.order.example(bad, row).utterance] for row in range(self.config.data.batch_size)]
        path = self.directory / f"bad_batch_step_{bad}.txt"
        if is_first():
            path.write_text("\n".join(ids) + "\n", "utf-8")
        raise TrainingError(
            f"the loss or gradient of step {bad} is not finite; its batch: {', '.join(ids[:4])}, ... (all in {path}); "
            "look at these recordings, or lower optim.peak; checkpoints before it stand"
        )

    def _dev_step(self) -> bool:
        every = self.config.run.dev_every
        return self.step == self.plan.clock.total or bool(every and self.step % every == 0)

    def _judged(self) -> DevResult:
        """The dev result of the weights as they are; the first process scores."""
        found = on_first(lambda: dataclasses.asdict(dev_trials(self.config).evaluate(self._scored())))
        return DevResult(**found)

    def _scored(self) -> Variables:
        """Variables to score with, on this process alone."""
        variables = model_variables(self.state)
        return variables if self.mesh is None else jax.tree.map(np.asarray, variables)

    def _evaluate(self) -> None:
        self._check_finite()
        self.result = self._judged()
        line = {"step": self.step, "dev_eer": self.result.eer, "dev_min_dcf": self.result.min_dcf}
        self._write(line)
        if self.best is None or self.result.eer < self.best["dev_eer"]:
            self.best = line
        self.watcher.progress(self.step, self.plan.clock.total, line)

    def _save(self) -> None:
        self._check_finite()
        eer = self.result.eer if self.result and self._dev_step() else None
        self.checkpoints.save(self.step, self.state, {"best": self.best, "dev_eer": eer})

    def _ended(self, finished: bool) -> Result:
        if not finished:
            return Result(self.step, False)
        if self.dev_name and self.result is None:  # resumed at the very end
            self.result = self._judged()
        on_first(lambda: str(plot_curves(self.directory)))
        last = self._write_bundle(BUNDLE, self.result)
        best = self._best()
        return Result(
            self.step, True, last, self.result, None if best is None else self._write_bundle(BEST_BUNDLE, best), best
        )

    def _best(self) -> DevResult | None:
        """Goes back to the checkpoint with the lowest dev EER, unless it is the last one or can't be read."""
        # Asked of the first process: to others the newest checkpoint may not be visible yet.
        step = on_first(lambda: self.checkpoints.best_step) if self.dev_name else None
        if step in (None, self.step):
            return None
        try:
            self.state, _ = self.checkpoints.restore(step, abstract_state(self.config, self.n_classes, self.mesh))
        except BundleError as error:
            self.watcher.note(f"no {BEST_BUNDLE}: {error}")
            return None
        return self._judged()

    def _write_bundle(self, name: str, dev: DevResult | None) -> Path:
        path = self.directory / name
        # As a string: what the first process returns is told to the others.
        on_first(lambda: str(final_bundle(self.config, self.state, self.manifest, path, dev, self.dev_name)))
        return path


def history(directory: Path) -> list[dict[str, Any]]:
    """The metrics of a run, a record a line."""
    return read_lines(directory / METRICS)


def weights(state: State) -> dict[str, np.ndarray]:
    """Every array of a state by its path: for comparison."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
