"""A progress bar on stderr, for people only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ecapa_jax.hub.download import Report


@contextlib.contextmanager
def bar(title: str, *, shown: bool) -> Iterator[Report]:
    """Shows the bytes of one download; prints nothing unless `shown` and stderr is a terminal."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = ("{task.description}", progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn())
    disabled = not (shown and console.is_terminal)
    with progress.Progress(*columns, console=console, transient=True, disable=disabled) as display:
        task = display.add_task(title, total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)
