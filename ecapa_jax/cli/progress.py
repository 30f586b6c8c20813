"""Progress of a corpus on stderr, and a stop on request."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; the second of them acts as if there were no event."""
    stop = threading.Event()
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def asked(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore()

    def restore() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    for kind in kinds:
        signal.signal(kind, asked)
    try:
        yield stop
    finally:
        restore()


class CorpusProgress:
    """A bar with speech-hours/s and the time that is left; on a terminal only."""

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
        """Counts recordings; those of an earlier run say nothing about the speed."""
        now = time.monotonic()
        self._start = self._start or now
        if not before:
            self._files, self._seconds = self._files + files, self._seconds + seconds
        self._progress.update(self._task, advance=files)
        task = self._progress.tasks[0]
        elapsed = max(now - self._start, 1e-3)
        left = ((task.total or 0) - task.completed) * elapsed / max(self._files, 1)
        text = f"{self._seconds / 3600 / elapsed:.3f} speech-hours/s, {clock(left)} left" if self._files else "going on"
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
