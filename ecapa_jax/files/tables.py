"""Splits text tables into rows and cells: at tabs, or as CSV. An unclosed quote is an error and never swallows rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ecapa_jax.errors import EcapaError

_QUOTED_CELL = re.compile(r'"(?:[^"]|"")*"')
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?!")')


def split_lines(text: str) -> list[str]:
    """Splits text at LF, CR LF or CR. `str.splitlines` would also split at characters that occur in names."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def split_row(line: str, separator: str) -> list[str] | None:
    """Splits a line into cells; returns None if a quote is still open at its end.

    In a table with tabs, every tab is a separator and quotes are text, as in the files of Common Voice. Only a cell
    that is quoted as a whole loses its quotes, because spreadsheets and pandas write such cells. With other separators,
    a cell that begins with a quote ends at the next quote that is not doubled.
    """
    if '"' not in line:
        return line.split(separator)
    if separator == "\t":
        return [_unquote(cell) for cell in line.split("\t")]
    cells, at = [], 0
    while True:
        found = _QUOTED.match(line, at) if line.startswith('"', at) else None
        if line.startswith('"', at) and found is None:
            return None
        end = line.find(separator, found.end() if found else at)
        rest = line[found.end() if found else at : None if end < 0 else end]
        cells.append(found[1].replace('""', '"') + rest if found else rest)
        if end < 0:
            return cells
        at = end + 1


def _unquote(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if _QUOTED_CELL.fullmatch(cell) else cell


def read_delimited(path: Path, separator: str, error: type[EcapaError]) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and cells of the header, which are stripped, and then of each line that is not empty.

    Args:
      path: a file in UTF-8, with or without a byte order mark.
      separator: tab or comma.
      error: type of the exception to raise.

    Raises:
      EcapaError: (`error`) a quote is not closed or would swallow a row, or a row has more cells than the header. The
        message names the line.
      OSError, UnicodeError: the file can't be read.
    """
    with path.open(encoding="utf-8-sig") as file:
        header: list[str] | None = None
        for number, cells in _read_records(path, file, separator, error):
            if header is None:
                header = [cell.strip() for cell in cells]
                yield number, header
                continue
            if len(cells) > len(header):
                what = "tab" if separator == "\t" else "comma"
                raise error(
                    f"{path}:{number}: {len(cells)} cells, the header has {len(header)}; is there a {what} in a cell?"
                )
            yield number, cells


def _read_records(path: Path, file: TextIO, separator: str, error: type[EcapaError]) -> Iterator[tuple[int, list[str]]]:
    n_columns, begin, record = 0, 0, ""
    for number, line in enumerate(file, 1):
        line = line.rstrip("\n")
        if not record:
            if not line.strip(" \r"):
                continue
            begin = number
        elif n_columns > 1 and len(split_row(line, separator) or ()) == n_columns:
            raise error(
                f"{path}:{begin}: is damaged: a quote opens and would swallow line {number}, which has the cells of a "
                "row of its own; close it, double it, or separate by tabs (.tsv), where quotes are text"
            )
        record = f"{record}\n{line}" if record else line
        cells = split_row(record, separator)
        if cells is not None:
            n_columns = n_columns or len(cells)
            record = ""
            yield begin, cells
    if record:
        raise error(f"{path}:{begin}: is damaged: a quote opens and is not closed; close it or double it")


def column_of(header: Sequence[str], names: Sequence[str]) -> int | None:
    """Finds the position of the first of these names in the header; an exact match beats one in another case."""
    lower = [name.lower() for name in header]
    for name in names:
        if name in header:
            return header.index(name)
    return next((lower.index(name.lower()) for name in names if name.lower() in lower), None)
