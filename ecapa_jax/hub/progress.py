"""A progress bar on stderr, for people only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ecapa_jax.hub.download import Report


def on_terminal() -> bool:
    """Whether stderr is a terminal, so that a bar is seen by someone."""
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextlib.contextmanager
def bar(title: str, *, shown: bool) -> Iterator[Report]:
    """Shows the bytes of one download; nothing is printed unless `shown` and stderr is a terminal."""
    if not shown or not on_terminal():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown_bar:
        task = shown_bar.add_task(title, total=None)
        yield lambda done, total: shown_bar.update(task, completed=done, total=total)
