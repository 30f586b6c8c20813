"""Which recordings a corpus has: a table, JSON, Kaldi's wav.scp, or a plain list of paths; see `files.entries`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ecapa_jax.errors import CorpusError, one_line
from ecapa_jax.files.entries import (
    COLUMNS,
    Entry,
    entry_of_row,
    numbered_lines,
    read_json,
    read_scp,
    read_table,
)
from ecapa_jax.files.tables import column_of

_BLOCK = 1 << 16  # rows that are Python strings at a time

_NAMES = {"path": COLUMNS["path"][:-1], "id": ("id", "ID"), "start": COLUMNS["start"], "stop": COLUMNS["stop"]}
"""Names of columns; `utterance` may hold what was said, and `file` anything, so that they count for `prepare` only."""

_COLUMNS = ("id", "path", "start", "stop", "in_samples")


@dataclasses.dataclass(frozen=True)
class RecordingPart:
    """A part of a recording.

    Attributes:
      path: the recording.
      start, stop: where it begins and ends; a stop of None is the recording's end.
      in_samples: whether these are samples at the model's rate, and not seconds.
    """

    path: str
    start: float
    stop: float | None
    in_samples: bool

    def bounds(self, rate: int) -> tuple[int, int | None]:
        """First and last-plus-one sample at a rate."""
        factor = 1 if self.in_samples else rate
        return round(self.start * factor), None if self.stop is None else round(self.stop * factor)


@dataclasses.dataclass(frozen=True, eq=False)
class Manifest:
    """The recordings of a corpus, in order.

    Attributes:
      table: Arrow table with the string columns `id` and `path`, ids unique; and `start`, `stop` and `in_samples`,
        which are null for a whole recording.
    """

    table: Any

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sha256 over ids, paths and parts in order; what the files hold is not read."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _BLOCK):
            digest.update(json.dumps(self.rows(start, start + _BLOCK)).encode())
        if self.table["in_samples"].null_count < len(self):
            for name in _COLUMNS[2:]:
                digest.update(json.dumps(self.table[name].to_pylist()).encode())
        return digest.hexdigest()

    def rows(self, start: int, stop: int) -> tuple[list[str], list[str]]:
        """Ids and paths of the recordings from `start` to `stop`."""
        part = self.table.slice(start, stop - start)
        return part["id"].to_pylist(), part["path"].to_pylist()

    def sources(self, start: int, stop: int) -> list[str | RecordingPart]:
        """The recordings from `start` to `stop`: the path of a whole one, or the part that is meant."""
        rows = self.table.slice(start, stop - start).to_pylist()
        return [
            row["path"]
            if row["in_samples"] is None
            else RecordingPart(row["path"], row["start"] or 0.0, row["stop"], row["in_samples"])
            for row in rows
        ]


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads a manifest; its suffix says which kind it is.

    .parquet               column `path`, and `id` where there is one; other columns are left alone
    .csv, .tsv             the same, and 3D-Speaker's and SpeechBrain's columns, with `start` and `stop`. A .tsv is
                           split at tabs, and quotes in it are text
    .json, .jsonl          an object a line: `path`, `id`, or as NeMo and WeSpeaker write them; SpeechBrain's .json
    .list                  WeSpeaker's raw list, an object a line; or one path a line
    .scp                   Kaldi: `id path` a line; commands and offsets into archives are refused
    anything else          one path a line

    Without ids a path is its own id, with where it starts for a later part. Empty lines are skipped.

    Raises:
      CorpusError: it can't be read, a row has no path, or an id comes twice; naming the row.
    """
    import pyarrow as pa

    path = Path(path)
    reader = _READERS.get(path.suffix.lower(), _plain)
    try:
        rows = reader(path)
        blocks = [pa.table({name: [] for name in _COLUMNS}, schema=_schema())]
        while block := list(itertools.islice(rows, _BLOCK)):
            columns = zip(*map(_row, block), strict=True)
            blocks.append(pa.table(dict(zip(_COLUMNS, columns, strict=True)), schema=_schema()))
    except (OSError, UnicodeError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise CorpusError(f"{path}: can't be read as a manifest ({reason}); check the file and its suffix") from error
    manifest = Manifest(pa.concat_tables(blocks).combine_chunks())
    if not len(manifest):
        raise CorpusError(f"{path}: names no recordings; give one a line")
    _check_unique(path, manifest.table["id"])
    return manifest


def _schema() -> Any:
    import pyarrow as pa

    types = (pa.large_string(), pa.large_string(), pa.float64(), pa.float64(), pa.bool_())
    return pa.schema(list(zip(_COLUMNS, types, strict=True)))


def _row(entry: Entry) -> tuple[str, str, float | None, float | None, bool | None]:
    identity = entry.id
    if identity is None:
        until = "" if entry.stop is None else f"{entry.stop:g}"
        identity = f"{entry.path}:{entry.start:g}-{until}" if entry.start else entry.path
    if not entry.is_part:
        return identity, entry.path, None, None, None
    return identity, entry.path, entry.start, entry.stop, entry.in_samples


def _check_unique(path: Path, ids: Any) -> None:
    import pyarrow.compute as pc

    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        first = counts.filter(pc.greater(counts.field("counts"), 1))[0]
        raise CorpusError(
            f"{path}: {first['values'].as_py()!r} comes {first['counts'].as_py()} times; ids (without ids: paths) "
            f"must be unique"
        )


def _plain(path: Path) -> Iterator[Entry]:
    for number, line in numbered_lines(path, CorpusError):
        if (line.lstrip().startswith(("{", "[")) or "\t" in line) and not os.path.exists(line):
            kind = ".tsv" if "\t" in line and not line.lstrip().startswith(("{", "[")) else ".jsonl"
            raise CorpusError(
                f"{path}:{number}: is no path but a row of a table ({line[:40]}...); name the file *{kind}, or list "
                "one path a line"
            )
        yield Entry(f"{path}:{number}", line)


def _raw_list(path: Path) -> Iterator[Entry]:
    """WeSpeaker's raw.list, which is JSON lines, or paths."""
    first = next((line for _, line in numbered_lines(path, CorpusError)), "")
    yield from read_json(path, CorpusError) if first.lstrip().startswith("{") else _plain(path)


def _table(path: Path) -> Iterator[Entry]:
    yield from read_table(path, CorpusError, _NAMES)


def _parquet(path: Path) -> Iterator[Entry]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        places = {what: column_of(names, of) for what, of in _NAMES.items()}
        wanted = {what: names[at] for what, at in places.items() if at is not None}
        if "path" not in wanted:
            raise CorpusError(f"{path}: has no column 'path'; it has {names[:8]}")
        number = 0
        for batch in file.iter_batches(_BLOCK, columns=list(wanted.values())):
            columns = [batch.column(name).cast(pa.large_string()).to_pylist() for name in wanted.values()]
            for row in zip(*columns, strict=True):
                number += 1
                yield entry_of_row(f"{path}, row {number}", dict(zip(wanted, row, strict=True)), CorpusError)


_READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".parquet": _parquet,
    ".csv": _table,
    ".tsv": _table,
    ".json": functools.partial(read_json, error=CorpusError),
    ".jsonl": functools.partial(read_json, error=CorpusError),
    ".ndjson": functools.partial(read_json, error=CorpusError),
    ".list": _raw_list,
    ".scp": functools.partial(read_scp, error=CorpusError),
}


def shard_bounds(n_rows: int, shard_size: int) -> Iterable[tuple[int, int]]:
    """First and last-plus-one row of every shard."""
    return [(start, min(start + shard_size, n_rows)) for start in range(0, n_rows, shard_size)]
