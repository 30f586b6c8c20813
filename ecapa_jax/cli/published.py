"""`ecapa-jax convert --list`: the published models."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING

from ecapa_jax.cli.common import Output

if TYPE_CHECKING:
    from ecapa_jax.convert.published import PublishedModel


def list_published(output: Output) -> None:
    """Prints the table of published models: in the width of a terminal, elsewhere with one line per model."""
    from ecapa_jax.convert.published import PUBLISHED

    output.result({"published": [dataclasses.asdict(entry) for entry in PUBLISHED]}, _table(PUBLISHED))


def _table(entries: tuple[PublishedModel, ...]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    # What is cut short can't be copied: each column takes as many lines as it needs.
    for title, width in (("family", 10), ("address", 20), ("file", 10), ("published EER %", 9), ("licence", 8)):
        table.add_column(title, overflow="fold", min_width=width)
    for entry in entries:
        address = entry.address + (f"@{entry.revision}" if entry.revision else "")
        table.add_row(
            entry.family,
            "\n".join((address + ("" if entry.confirmed else " (?)"), *entry.mirrors)),
            entry.files[0],
            _figure(entry),
            entry.licence,
        )
    console = Console()
    # A pipe has no width: what reads it wants whole lines.
    paper = Console(
        file=io.StringIO(), width=console.width if console.is_terminal else 400, highlight=False, color_system=None
    )
    paper.print(table)
    paper.print("Figures are the publishers'; --json has all of them. (?): address or file name not confirmed.")
    return "\n".join(line.rstrip() for line in paper.file.getvalue().rstrip().splitlines())  # type: ignore[attr-defined]


def _figure(entry: PublishedModel) -> str:
    if not entry.figures:
        return "none"
    first = entry.figures[0]
    return f"{first.eer:g} ({first.trials})"
