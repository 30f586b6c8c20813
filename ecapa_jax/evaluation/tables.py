"""Text tables of trials: fields by white space, or CSV and TSV with a header; gzip too. Errors name file and line."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ecapa_jax.errors import TrialError

MAX_BYTES = 1 << 31  # unpacked; VoxCeleb1-E, the longest of the usual lists, has 41 MB


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Lines that are not blank.

    Attributes:
      path: where it is from, for messages.
      header: column names, lower case; None where the first line is no header.
      rows: fields of each line, as many as the header has where there is one.
      lines: number of each row's line, from 1.
    """

    path: str
    header: tuple[str, ...] | None
    rows: list[list[str]]
    lines: list[int]

    def error(self, row: int, message: str) -> TrialError:
        """An error at a row."""
        return TrialError(f"{self.path}, line {self.lines[row]}: {message}")

    def column(self, names: Iterable[str]) -> int | None:
        """Position of the first of these names that the header has."""
        return next((self.header.index(name) for name in names if self.header and name in self.header), None)


def read_table(path: str | os.PathLike[str], header_names: Iterable[str]) -> Table:
    """Reads a table, whole.

    Args:
      path: text in UTF-8, perhaps compressed by gzip, whatever its name.
      header_names: one of these in the first line, and a tab or comma, make that line a header and its separator the
        table's. Other tables have fields without white space in them.

    Raises:
      TrialError: it can't be read, is no text, or a line has more or fewer fields than the header.
    """
    name = os.fspath(path)
    lines = [(number, line) for number, line in enumerate(_text(name).splitlines(), 1) if line.strip()]
    if not lines:
        raise TrialError(f"{name} is empty; give one trial a line")
    first = lines[0][1]
    separator = "\t" if "\t" in first else ","
    header = tuple(field.strip().lower() for field in next(csv.reader([first], delimiter=separator)))
    if len(header) < 2 or not set(header) & set(header_names):
        return Table(name, None, [line.split() for _, line in lines], [number for number, _ in lines])
    if len(set(header)) < len(header):
        raise TrialError(f"{name}, line {lines[0][0]}: a column name comes twice in the header: {first.strip()}")
    rows = [[field.strip() for field in row] for row in _split([line for _, line in lines[1:]], separator)]
    table = Table(name, header, rows, [number for number, _ in lines[1:]])
    for index, row in enumerate(rows):
        if len(row) != len(header):
            raise table.error(index, f"{len(row)} fields, the header has {len(header)}")
    if not rows:
        raise TrialError(f"{name} has a header and nothing below it; give one trial a line")
    return table


def _split(lines: list[str], separator: str) -> Iterator[list[str]]:
    """Fields of each line; a quoted field can't go over several lines, so that rows and lines stay together."""
    for line in lines:
        yield next(csv.reader([line], delimiter=separator)) if '"' in line else line.split(separator)


def _text(name: str) -> str:
    try:
        content = Path(name).read_bytes()
        if content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TrialError(f"{name} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MAX_BYTES:
        raise TrialError(f"{name} is above {MAX_BYTES >> 30} GB: split it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TrialError(f"{name}, line {line}: no UTF-8 text; a trial list is text, one trial a line") from error
