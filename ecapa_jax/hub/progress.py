"""A progress bar on stderr, for people only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ecapa_jax.hub.download import Report


def is_terminal() -> bool:
    """Returns whether stderr is a terminal, so that someone sees a bar."""
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextlib.contextmanager
def bar(title: str, *, shown: bool) -> Iterator[Report]:
    """Shows the bytes of one download; prints nothing unless `shown` and stderr is a terminal."""
    if not shown or not is_terminal():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    columns = ("{task.description}", progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn())
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(title, total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)
