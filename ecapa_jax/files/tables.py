"""Rows of text tables: split at tabs, or as CSV. No row is lost to a quote that is not closed, and none is shifted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ecapa_jax.errors import EcapaError

_QUOTED_CELL = re.compile(r'"(?:[^"]|"")*"')
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?!")')


def lines_of(text: str) -> list[str]:
    """The lines, ended by LF, CR LF or CR. `str.splitlines` also ends them at characters that stand in names."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def split_row(line: str, separator: str) -> list[str] | None:
    """The cells of a line; None where a quote is open at its end.

    Tabs are separators wherever they stand, and quotes are text, as in Common Voice's files; only a cell that is quoted
    as a whole, as spreadsheets and pandas write one, is without its quotes. With other separators a cell that begins
    with a quote goes to the next single quote.
    """
    if '"' not in line:
        return line.split(separator)
    if separator == "\t":
        return [_unquoted(cell) for cell in line.split("\t")]
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


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if _QUOTED_CELL.fullmatch(cell) else cell


def read_delimited(path: Path, separator: str, error: type[EcapaError]) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of the header's line, stripped, and then of each line that is not empty.

    Args:
      path: UTF-8, with or without a byte order mark.
      separator: tab or comma.
      error: the type of what is raised.

    Raises:
      EcapaError: (`error`) naming the line: a quote that is not closed, or that would swallow a row; more cells than
        the header has.
      OSError, UnicodeError: it can't be read.
    """
    with path.open(encoding="utf-8-sig") as file:
        header: list[str] | None = None
        for number, cells in _records(path, file, separator, error):
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


def _records(path: Path, file: TextIO, separator: str, error: type[EcapaError]) -> Iterator[tuple[int, list[str]]]:
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
    """Position of the first of these names that the header has, as it is written or in another case."""
    lower = [name.lower() for name in header]
    for name in names:
        if name in header:
            return header.index(name)
    return next((lower.index(name.lower()) for name in names if name.lower() in lower), None)
