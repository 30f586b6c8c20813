"""Progress bars on stderr, and signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def stop_signals(note: str = "") -> Iterator[threading.Event]:
    """Yields an event that the first SIGINT or SIGTERM sets; a second signal acts as usual.

    Args:
      note: what the first signal prints on stderr.
    """
    stop = threading.Event()
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore()
        os.write(2, note.encode())  # unlike print, allowed while another print is under way

    def restore() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    for kind in kinds:
        signal.signal(kind, ask_to_stop)
    try:
        yield stop
    finally:
        restore()


class CorpusProgress:
    """A bar with hours of speech per second and the time that is left; on a terminal only."""

    def __init__(self, n_rows: int, *, quiet: bool = False, console: Console | None = None):
        console = console or Console(stderr=True)
        self._progress = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=console, transient=True,
            disable=quiet or not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("loading the model", total=n_rows)
        self._files, self._seconds = 0, 0.0
        self._start: float | None = None

    def advance(self, files: int, seconds: float, before: bool) -> None:
        """Counts recordings. The speed is that of this run, from the end of its first batch, which compiles."""
        now = time.monotonic()
        if not before and self._start is not None:
            self._files, self._seconds = self._files + files, self._seconds + seconds
        elif not before and seconds > 0:
            self._start = now
        self._progress.update(self._task, advance=files)
        task = self._progress.tasks[0]
        text = "continuing"
        if self._files and self._start is not None:
            elapsed = max(now - self._start, 1e-3)
            left = ((task.total or 0) - task.completed) * elapsed / self._files
            text = f"{self._seconds / 3600 / elapsed:.3f} hours of speech/s, {clock(left)} left"
        self._progress.update(self._task, description=text)

    def __enter__(self) -> CorpusProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()


def clock(seconds: float) -> str:
    """`3:07:05` or `7:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class EvaluationProgress:
    """A bar for what an evaluation does with its recordings; on a terminal only."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console, transient=True,
            disable=quiet or not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Shows how far one kind of work is."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done)

    def __enter__(self) -> EvaluationProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()


class CountProgress:
    """A bar that counts; on a terminal only."""

    def __init__(self, what: str, *, quiet: bool = False):
        console = Console(stderr=True)
        self._progress = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn(), console=console, transient=True,
            disable=quiet or not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task(what)

    def update(self, done: int, total: int) -> None:
        """Shows how many are done."""
        self._progress.update(self._task, completed=done, total=total)

    def __enter__(self) -> CountProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class TrainProgress:
    """The newest figures of a training run, on stderr: in a bar on a terminal, else as lines."""

    def __init__(self, *, quiet: bool = False):
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._bar = not quiet and self._console.is_terminal
        self._progress = Progress(
            BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
            console=self._console, transient=True, disable=not self._bar,
        )  # fmt: skip
        self._task = self._progress.add_task("compiling")

    def note(self, text: str) -> None:
        """Prints a remark."""
        if not self._quiet:
            self._console.print(f"ecapa-jax: {text}", markup=False, highlight=False, soft_wrap=True)

    def progress(self, step: int, total: int, line: dict[str, float]) -> None:
        """Shows the newest figures of the training, or of an evaluation on the dev trials."""
        text = _figures(line)
        if self._bar:
            self._progress.update(self._task, completed=step, total=total, description=text)
        elif not self._quiet:
            left = (total - step) * line.get("seconds_per_step", 0.0)
            self._console.print(
                f"step {step}/{total} {text}" + (f", {clock(left)} left" if left else ""),
                highlight=False,
                soft_wrap=True,
            )

    def __enter__(self) -> TrainProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _figures(line: dict[str, float]) -> str:
    if "dev_eer" in line:
        return f"dev EER {line['dev_eer']:.2%}, minDCF {line['dev_min_dcf']:.3f}"
    learned = f"loss {line['loss']:.3f}, "
    if "teacher_cosine" in line:
        learned += f"cosine with the teacher {line['teacher_cosine']:.3f}, "
    if "accuracy" in line:
        learned += f"accuracy {line['accuracy']:.1%}, margin {line['margin']:.2f}, "
    return (
        f"{learned}lr {line['learning_rate']:.2e}, gradient norm {line['gradient_norm']:.2f}, "
        f"parameter norm {line['parameter_norm']:.1f}, "
        f"{line['speech_seconds_per_second']:.0f} s of speech/s, {line['starvation']:.1%} of time spent waiting"
    )
