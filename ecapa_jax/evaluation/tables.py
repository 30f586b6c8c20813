"""Reads text tables of trials: fields between white space, or CSV and TSV with a header, also compressed by gzip."""

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
    """The rows of a table, without blank lines.

    Attributes:
      path: the file, for messages.
      header: column names in lower case; None if the first line is not a header.
      rows: fields of each row, as many as the header has if there is one.
      lines: line number of each row, from 1.
    """

    path: str
    header: tuple[str, ...] | None
    rows: list[list[str]]
    lines: list[int]

    def error(self, row: int, message: str) -> TrialError:
        """Makes an error that names the line of a row."""
        return TrialError(f"{self.path}, line {self.lines[row]}: {message}")

    def column(self, names: Iterable[str]) -> int | None:
        """Finds the position of the first of these names in the header."""
        return next((self.header.index(name) for name in names if self.header and name in self.header), None)


def read_table(
    path: str | os.PathLike[str],
    header_names: Iterable[str],
    *,
    least_tabs: int = 2,
    is_header: Callable[[list[str]], bool] = lambda fields: False,
) -> Table:
    """Reads a whole table.

    Args:
      path: text in UTF-8, which may be compressed by gzip, whatever its name.
      header_names: if the first line contains one of these names and a tab or comma, it is a header, and its separator
        is that of the table. Fields of other tables are separated by tabs, or contain no white space.
      least_tabs: number of tabs that every line needs for its fields to be separated by tabs.
      is_header: function that says whether fields separated by white space are a header.

    Raises:
      TrialError: the file can't be read or is not text, or a line has more or fewer fields than the header.
    """
    name = os.fspath(path)
    lines = [(number, line) for number, line in enumerate(split_lines(_read_text(name)), 1) if line.strip()]
    if not lines:
        raise TrialError(f"{name} is empty; give one trial per line")
    numbers = [number for number, _ in lines]
    separator = "\t" if "\t" in lines[0][1] else ","
    header = tuple(field.strip().lower() for field in split_row(lines[0][1], separator) or ())
    if len(header) >= 2 and set(header) & set(header_names):
        rows = [[field.strip() for field in _split_cells(name, number, line, separator)] for number, line in lines[1:]]
    else:
        rows = _split_fields([line for _, line in lines], least_tabs)
        if not is_header(rows[0]):
            return Table(name, None, rows, numbers)
        header, rows = tuple(field.lower() for field in rows[0]), rows[1:]
    return _check_table(Table(name, header, rows, numbers[1:]), lines[0])


def _check_table(table: Table, first: tuple[int, str]) -> Table:
    header = table.header or ()
    if len(set(header)) < len(header):
        raise TrialError(
            f"{table.path}, line {first[0]}: the header has two columns of the same name: {first[1].strip()}"
        )
    for index, row in enumerate(table.rows):
        if len(row) != len(header):
            raise table.error(index, f"{len(row)} fields, the header has {len(header)}")
    if not table.rows:
        raise TrialError(f"{table.path} has a header and nothing below it; give one trial per line")
    return table


def _split_cells(name: str, number: int, line: str, separator: str) -> list[str]:
    """Splits a line into fields; a quoted field can't extend over several lines, so that every line is a row."""
    cells = split_row(line, separator)
    if cells is None:
        raise TrialError(f"{name}, line {number}: a quote opens and is not closed in this line; close it or double it")
    return cells


def _split_fields(lines: list[str], least_tabs: int) -> list[list[str]]:
    """Splits lines without a header: at tabs if every line has the same sufficient number of tabs, else at spaces."""
    tabs = {line.strip("\t ").count("\t") for line in lines}
    if len(tabs) == 1 and min(tabs) >= least_tabs:
        return [[field.strip(" ") for field in line.strip("\t ").split("\t")] for line in lines]
    # Not `split()`, which also splits at wide and unbreakable spaces, which may occur in names.
    return [[field for field in line.replace("\t", " ").split(" ") if field] for line in lines]


def _read_text(name: str) -> str:
    try:
        content = Path(name).read_bytes()
        if content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TrialError(f"{name} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MAX_BYTES:
        raise TrialError(f"{name} is larger than {MAX_BYTES >> 30} GB: split it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TrialError(
            f"{name}, line {line}: is not UTF-8 text; a trial list is text with one trial per line"
        ) from error
