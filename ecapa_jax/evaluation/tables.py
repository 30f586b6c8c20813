"""Text tables of trials: fields by white space, or CSV and TSV with a header; gzip too. Errors name file and line."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from ecapa_jax.errors import TrialError
from ecapa_jax.files.tables import split_lines, split_row

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


def read_table(
    path: str | os.PathLike[str],
    header_names: Iterable[str],
    *,
    least_tabs: int = 2,
    is_header: Callable[[list[str]], bool] = lambda fields: False,
) -> Table:
    """Reads a table, whole.

    Args:
      path: text in UTF-8, perhaps compressed by gzip, whatever its name.
      header_names: one of these in the first line, and a tab or comma, make that line a header and its separator the
        table's. Other tables have fields without white space in them, or between tabs.
      least_tabs: how many tabs every line must have for that.
      is_header: whether fields that are separated by white space are a header.

    Raises:
      TrialError: it can't be read, is no text, or a line has more or fewer fields than the header.
    """
    name = os.fspath(path)
    lines = [(number, line) for number, line in enumerate(split_lines(_text(name)), 1) if line.strip()]
    if not lines:
        raise TrialError(f"{name} is empty; give one trial a line")
    numbers = [number for number, _ in lines]
    separator = "\t" if "\t" in lines[0][1] else ","
    header = tuple(field.strip().lower() for field in split_row(lines[0][1], separator) or ())
    if len(header) >= 2 and set(header) & set(header_names):
        rows = [[field.strip() for field in _cells(name, number, line, separator)] for number, line in lines[1:]]
    else:
        rows = _fields([line for _, line in lines], least_tabs)
        if not is_header(rows[0]):
            return Table(name, None, rows, numbers)
        header, rows = tuple(field.lower() for field in rows[0]), rows[1:]
    return _checked(Table(name, header, rows, numbers[1:]), lines[0])


def _checked(table: Table, first: tuple[int, str]) -> Table:
    header = table.header or ()
    if len(set(header)) < len(header):
        raise TrialError(f"{table.path}, line {first[0]}: a column name comes twice in the header: {first[1].strip()}")
    for index, row in enumerate(table.rows):
        if len(row) != len(header):
            raise table.error(index, f"{len(row)} fields, the header has {len(header)}")
    if not table.rows:
        raise TrialError(f"{table.path} has a header and nothing below it; give one trial a line")
    return table


def _cells(name: str, number: int, line: str, separator: str) -> list[str]:
    """Fields of a line; a quoted field can't go over several lines, so that rows and lines stay together."""
    cells = split_row(line, separator)
    if cells is None:
        raise TrialError(f"{name}, line {number}: a quote opens and is not closed in this line; close it or double it")
    return cells


def _fields(lines: list[str], least_tabs: int) -> list[list[str]]:
    """Fields of lines without a header: between tabs, if every line has as many and enough, else between spaces."""
    tabs = {line.strip("\t ").count("\t") for line in lines}
    if len(tabs) == 1 and min(tabs) >= least_tabs:
        return [[field.strip(" ") for field in line.strip("\t ").split("\t")] for line in lines]
    # Not `split()`, which also splits at the wide and unbreakable spaces that may stand in names.
    return [[field for field in line.replace("\t", " ").split(" ") if field] for line in lines]


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
