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
from ecapa_jax.modes import library_modes
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.data.manifest import UNNAMED, TrainingManifest, check_installed, read_manifest
from ecapa_jax.train.data.order import Order
from ecapa_jax.train.data.pipeline import Batches, Loader, Rows
from ecapa_jax.train.dev import DevResult, dev_trials
from ecapa_jax.train.finish import write_bundle
from ecapa_jax.train.record import METRICS, Record, plot_curves, read_lines, to_python
from ecapa_jax.train.rooms import make_room_bank
from ecapa_jax.train.scale.mesh import global_batch, make_mesh, mesh_size, process_rows, replicate
from ecapa_jax.train.scale.processes import any_process, is_first, on_first
from ecapa_jax.train.schedules import Clock, learning_rate, margin_at
from ecapa_jax.train.start import CHECKPOINTS, Start, abstract_state, claim, count_classes, start
from ecapa_jax.train.state import State, model_variables, zero_sums
from ecapa_jax.train.step import StepSetup, compiled_step
from ecapa_jax.train.teacher import TeacherBundle, TeacherTable, read_teacher

BUNDLE, BEST_BUNDLE = "bundle", "best_bundle"

AGREE_EVERY = 10
"""With several processes, every so many steps they agree on whether one of them was asked to stop."""


@runtime_checkable
class Watcher(Protocol):
    """Receives the reports of a run; the command line shows them as a progress bar."""

    def note(self, text: str) -> None:
        """Receives a remark."""

    def progress(self, step: int, total: int, line: dict[str, Any]) -> None:
        """Receives the number of steps done and the newest figures."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      step: number of steps done.
      finished: False if the run was asked to stop; the same call continues it.
      bundle: the trained model, if finished.
      dev: the last evaluation on the dev trials.
      best_bundle: the model of an earlier checkpoint, if it was better on the dev trials.
      best_dev: the evaluation of that model.
    """

    step: int
    finished: bool
    bundle: Path | None = None
    dev: DevResult | None = None
    best_bundle: Path | None = None
    best_dev: DevResult | None = None


def train(config: TrainConfig, directory: Path, watcher: Watcher, stop: Callable[[], bool] = lambda: False) -> Result:
    """Starts a training run in a directory, or continues it.

    Args:
      config: the run.
      directory: folder of the run, made if it doesn't exist. If it holds a run with the same configuration, this run
        continues from its newest undamaged checkpoint.
      watcher: receives progress.
      stop: called after every step; when it returns True, the state is saved and the run ends.

    Raises:
      TrainingError: the directory is in use or belongs to another run, or a loss is not finite.
      ConfigError, AudioError, BundleError: a file that the configuration names can't be used, or a checkpoint can't be
        written.
    """
    check_installed("pyarrow", "grain")
    mesh = make_mesh(config)
    directory.mkdir(parents=True, exist_ok=True)
    with library_modes(), contextlib.ExitStack() as held:
        on_first(lambda: held.enter_context(_lock_directory(directory)))
        manifest = read_manifest(config.data.manifest)
        _check_manifest(config, manifest)
        teacher = read_teacher(config, manifest)
        on_first(lambda: claim(directory, config, manifest, teacher.digest if teacher else ""))
        checkpoints = held.enter_context(RunCheckpoints(directory / CHECKPOINTS, config.run.keep))
        begin = start(config, manifest, checkpoints, mesh)
        for note in (*begin.notes, *_note_idle_devices(mesh)) if is_first() else ():
            watcher.note(note)
        watcher = watcher if is_first() else _OtherProcessWatcher(watcher)
        return _Run(config, directory, manifest, teacher, checkpoints, begin, watcher, mesh).run(stop)


def _note_idle_devices(mesh: Mesh | None) -> list[str]:
    used, available = mesh_size(mesh), len(jax.devices())
    return [f"using {used} of {available} devices; set mesh.data=0 to use all"] if used < available else []


class _OtherProcessWatcher:
    """Passes on the remarks of a process that is not the first, because only that process sees its part of the data."""

    def __init__(self, watcher: Watcher):
        self._watcher = watcher

    def note(self, text: str) -> None:
        self._watcher.note(f"process {jax.process_index()}: {text}")

    def progress(self, step: int, total: int, line: dict[str, Any]) -> None:
        pass


@contextlib.contextmanager
def _lock_directory(directory: Path) -> Iterator[None]:
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
            f"{config.data.manifest} has {manifest.rate} Hz, but the model takes {config.model.fbank.sample_rate} Hz: "
            "prepare the data at the rate of the model"
        )
    unnamed = int(np.sum(manifest.labels == UNNAMED))
    if unnamed and not config.teacher.is_used:
        raise TrainingError(
            f"{unnamed} utterances of {config.data.manifest} have no speaker: name their speakers, or learn from a "
            "teacher (section [teacher])"
        )
    if config.teacher.is_used and config.teacher.labels and unnamed == len(manifest):
        raise TrainingError(f"teacher.labels: no utterance of {config.data.manifest} has a speaker: set it to 0")


class _Run:
    """The part of a run that one process does, from start to end."""

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
        self.setup = StepSetup.of(
            config, clock, mesh, 0 if mesh is None else self.n_classes, None if bundle is None else bundle.config
        )
        self.rows = Rows(process_rows(mesh, config.data.batch_size, config.step.micro_batches))
        self.loader = Loader(config.data, config.augment, manifest, self.order, self.rows, table)
        self.batches = Batches(self.loader, self.rows, config.data, begin.step)
        banks: dict[str, Any] = make_room_bank(config.augment, manifest.rate, config.run.seed)
        self.banks = replicate(mesh, banks if bundle is None else {**banks, "teacher": bundle.arrays})
        self.state, self.step, self.best = begin.state, begin.step, begin.best
        self.dev_name = on_first(lambda: dev_trials(config).name) if config.run.dev_trials else ""
        self.result: DevResult | None = None
        self.record = Record(directory, begin.step) if is_first() else None
        self.problems: set[str] = set()
        self.is_stop_requested = False

    def run(self, stop: Callable[[], bool]) -> Result:
        """Takes steps until the end of the run, or until asked to stop."""
        total, take = self.setup.clock.total, compiled_step(self.setup)
        first = self.began_step = self.step
        batch = self._next_batch() if self.step < total else None
        stopped = False
        while self.step < total and not stopped:
            self.state = take(self.banks, self.state, batch)
            if self.step == first:  # the first call compiles the step, which must not count in estimates of time
                self.began, self.batches.waited = time.perf_counter(), 0.0
            self.step += 1
            # The next batch is copied to the device while the device computes this one.
            batch = self._next_batch() if self.step < total else None
            stopped = self._is_asked_to_stop(stop)
            last = self.step == total
            if last or self.step % self.config.run.log_every == 0:
                self._log()
            if self.dev_name and self._is_dev_step():
                self._evaluate()
            if last or stopped or self.step % self.config.run.save_every == 0:
                self._save()
        self.checkpoints.wait()
        if self.record:
            self.record.close()
        return self._finish(self.step == total)

    def _next_batch(self) -> dict[str, jax.Array]:
        batch = {name: array for name, array in next(self.batches).items() if name != "utterances"}
        return global_batch(self.mesh, batch, self.config.data.batch_size)

    def _is_asked_to_stop(self, stop: Callable[[], bool]) -> bool:
        """Whether to stop now. Several processes must stop at the same step, so they may go on for a few steps."""
        self.is_stop_requested = stop() or self.is_stop_requested
        if jax.process_count() > 1 and self.step % AGREE_EVERY:
            return False
        return any_process(self.is_stop_requested)

    def _log(self) -> None:
        """Reads the figures from the device, which is done only here, and writes a line of metrics."""
        self._check_finite()
        done = self.state["step"] - 1
        sums = self.state["sums"]
        figures = {name: sums[name] / sums["steps"] for name in self._name_figures()}
        figures["parameter_norm"] = optax.tree.norm(self.state["params"])
        figures["learning_rate"] = learning_rate(self.config.optim, self.setup.clock, done)
        if "accuracy" in figures:
            figures["margin"] = margin_at(self.config.loss, self.setup.clock, done)
        line = {"step": self.step, **to_python(figures)}
        self.state["sums"] = replicate(self.mesh, zero_sums())
        self._write(line)
        self._report_times(line)
        for name, problem in self.loader.problems.items():
            if name not in self.problems:
                self.watcher.note(f"an unreadable utterance was replaced by another: {problem}")
        self.problems.update(self.loader.problems)

    def _name_figures(self) -> list[str]:
        """Returns the names of the means over steps that are meaningful in this run."""
        teacher = self.config.teacher
        cosine = ["teacher_cosine"] if teacher.is_used and (teacher.cosine or teacher.contrast) else []
        accuracy = ["accuracy"] if teacher.labels or not teacher.is_used else []
        return ["loss", *accuracy, *cosine, "gradient_norm"]

    def _write(self, line: dict[str, Any]) -> None:
        if self.record:
            self.record.metrics(line)

    def _report_times(self, line: dict[str, Any]) -> None:
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
        self.watcher.progress(self.step, self.setup.clock.total, {**line, **times})

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
            "check these recordings, or lower optim.peak; earlier checkpoints are kept"
        )

    def _is_dev_step(self) -> bool:
        every = self.config.run.dev_every
        return self.step == self.setup.clock.total or bool(every and self.step % every == 0)

    def _evaluate_dev(self) -> DevResult:
        """Evaluates the current weights on the dev trials; only the first process scores."""
        found = on_first(lambda: dataclasses.asdict(dev_trials(self.config).evaluate(self._scoring_variables())))
        return DevResult(**found)

    def _scoring_variables(self) -> Variables:
        """Returns the variables to score with, on this process alone."""
        variables = model_variables(self.state)
        return variables if self.mesh is None else jax.tree.map(np.asarray, variables)

    def _evaluate(self) -> None:
        self._check_finite()
        self.result = self._evaluate_dev()
        line = {"step": self.step, "dev_eer": self.result.eer, "dev_min_dcf": self.result.min_dcf}
        self._write(line)
        if self.best is None or self.result.eer < self.best["dev_eer"]:
            self.best = line
        self.watcher.progress(self.step, self.setup.clock.total, line)

    def _save(self) -> None:
        self._check_finite()
        eer = self.result.eer if self.result and self._is_dev_step() else None
        self.checkpoints.save(self.step, self.state, {"best": self.best, "dev_eer": eer})

    def _finish(self, finished: bool) -> Result:
        if not finished:
            return Result(self.step, False)
        if self.dev_name and self.result is None:  # the run was resumed after its last step
            self.result = self._evaluate_dev()
        on_first(lambda: str(plot_curves(self.directory)))
        last = self._write_bundle(BUNDLE, self.result)
        best = self._restore_best()
        return Result(
            self.step, True, last, self.result, None if best is None else self._write_bundle(BEST_BUNDLE, best), best
        )

    def _restore_best(self) -> DevResult | None:
        """Restores the checkpoint with the lowest dev EER, unless it is the last one or can't be read."""
        # The first process decides, because the newest checkpoint may not be visible to the others yet.
        step = on_first(lambda: self.checkpoints.best_step) if self.dev_name else None
        if step in (None, self.step):
            return None
        try:
            self.state, _ = self.checkpoints.restore(step, abstract_state(self.config, self.n_classes, self.mesh))
        except BundleError as error:
            self.watcher.note(f"no {BEST_BUNDLE}: {error}")
            return None
        return self._evaluate_dev()

    def _write_bundle(self, name: str, dev: DevResult | None) -> Path:
        path = self.directory / name
        # A string, because the first process sends its result to the others as JSON.
        on_first(lambda: str(write_bundle(self.config, self.state, self.manifest, path, dev, self.dev_name)))
        return path


def history(directory: Path) -> list[dict[str, Any]]:
    """Reads the metrics of a run, one record for each line."""
    return read_lines(directory / METRICS)


def weights(state: State) -> dict[str, np.ndarray]:
    """Returns every array of a state by its path, for comparisons."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
