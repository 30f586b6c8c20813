"""Reads the manifest of a corpus: a table, JSON, Kaldi's wav.scp, or a plain list of paths; see `files.entries`."""

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

from ecapa_jax.audio.decoding import channel_from_text
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

_BLOCK = 1 << 16  # rows that are held as Python strings at a time

_NAMES = {
    "path": COLUMNS["path"][:-1],
    "id": ("id", "ID"),
    **{name: COLUMNS[name] for name in ("start", "stop", "channel")},
}
"""Names of columns. `utterance` may hold a transcript, and `file` anything, so only `prepare` accepts these names."""

_COLUMNS = ("id", "path", "start", "stop", "in_samples", "channel")


@dataclasses.dataclass(frozen=True)
class RecordingPart:
    """A part of a recording.

    Attributes:
      path: the recording.
      start, stop: where the part begins and ends; a stop of None is the end of the recording.
      in_samples: whether `start` and `stop` are samples at the rate of the model instead of seconds.
      channel: the channel, if the manifest names one.
    """

    path: str
    start: float
    stop: float | None
    in_samples: bool
    channel: str | None = None

    def bounds(self, rate: int) -> tuple[int, int | None]:
        """Returns the first sample of the part at a rate, and the sample after its last."""
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
        """SHA-256 of ids, paths and parts in order; the files themselves are not read."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _BLOCK):
            digest.update(json.dumps(self.rows(start, start + _BLOCK)).encode())
        if self.table["in_samples"].null_count < len(self):
            for name in _COLUMNS[2:5]:
                digest.update(json.dumps(self.table[name].to_pylist()).encode())
        if self.table["channel"].null_count < len(self):
            digest.update(json.dumps(self.table["channel"].to_pylist()).encode())
        return digest.hexdigest()

    def rows(self, start: int, stop: int) -> tuple[list[str], list[str]]:
        """Returns ids and paths of the recordings from `start` to `stop`."""
        part = self.table.slice(start, stop - start)
        return part["id"].to_pylist(), part["path"].to_pylist()

    def sources(self, start: int, stop: int) -> list[str | RecordingPart]:
        """Returns the recordings from `start` to `stop`: the path of a whole recording, or a `RecordingPart`."""
        rows = self.table.slice(start, stop - start).to_pylist()
        return [
            row["path"]
            if row["in_samples"] is None and row["channel"] is None
            else RecordingPart(row["path"], row["start"] or 0.0, row["stop"], bool(row["in_samples"]), row["channel"])
            for row in rows
        ]


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads a manifest, whose suffix says which format it has.

    .parquet               column `path`, and optionally `id`; other columns are ignored
    .csv, .tsv             the same, and the columns of 3D-Speaker and SpeechBrain, with `start` and `stop`, and
                           `channel` (left, right, mean, or a number from 1). A .tsv is split at tabs, and quotes in it
                           are text
    .json, .jsonl          one object per line: `path`, `id`, or the keys of NeMo and WeSpeaker; SpeechBrain's .json
    .list                  WeSpeaker's raw list, one object per line; or one path per line
    .scp                   Kaldi: `id path` on each line; commands and offsets into archives are refused
    any other suffix       one path per line

    If there are no ids, the path is the id; the id of a part also contains its start. Empty lines are skipped.

    Raises:
      CorpusError: the file can't be read, a row has no path, or an id is not unique. The message names the row.
    """
    import pyarrow as pa

    path = Path(path)
    reader = _READERS.get(path.suffix.lower(), _read_paths)
    try:
        rows = reader(path)
        blocks = [pa.table({name: [] for name in _COLUMNS}, schema=_make_schema())]
        while block := list(itertools.islice(rows, _BLOCK)):
            columns = zip(*map(_make_row, block), strict=True)
            blocks.append(pa.table(dict(zip(_COLUMNS, columns, strict=True)), schema=_make_schema()))
    except (OSError, UnicodeError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise CorpusError(f"{path}: can't be read as a manifest ({reason}); check the file and its suffix") from error
    manifest = Manifest(pa.concat_tables(blocks).combine_chunks())
    if not len(manifest):
        raise CorpusError(f"{path}: names no recordings; give one on each line")
    _check_unique(path, manifest.table["id"])
    return manifest


def _make_schema() -> Any:
    import pyarrow as pa

    types = (pa.large_string(), pa.large_string(), pa.float64(), pa.float64(), pa.bool_(), pa.large_string())
    return pa.schema(list(zip(_COLUMNS, types, strict=True)))


def _make_row(entry: Entry) -> tuple[str, str, float | None, float | None, bool | None, str | None]:
    if entry.channel is not None and channel_from_text(entry.channel) is None:
        raise CorpusError(
            f"{entry.where}: its channel is {entry.channel!r}; it must be left, right, first, mean, or a number from 1"
        )
    identity = entry.id
    if identity is None:
        until = "" if entry.stop is None else f"{entry.stop:g}"
        identity = f"{entry.path}:{entry.start:g}-{until}" if entry.start else entry.path
        if entry.channel is not None:
            identity += f":{entry.channel}"
    if not entry.is_part:
        return identity, entry.path, None, None, None, entry.channel
    return identity, entry.path, entry.start, entry.stop, entry.in_samples, entry.channel


def _check_unique(path: Path, ids: Any) -> None:
    import pyarrow.compute as pc

    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        first = counts.filter(pc.greater(counts.field("counts"), 1))[0]
        raise CorpusError(
            f"{path}: {first['values'].as_py()!r} comes {first['counts'].as_py()} times; ids (without ids: paths) "
            f"must be unique"
        )


def _read_paths(path: Path) -> Iterator[Entry]:
    for number, line in numbered_lines(path, CorpusError):
        if (line.lstrip().startswith(("{", "[")) or "\t" in line) and not os.path.exists(line):
            kind = ".tsv" if "\t" in line and not line.lstrip().startswith(("{", "[")) else ".jsonl"
            raise CorpusError(
                f"{path}:{number}: is not a path but a row of a table ({line[:40]}...); name the file *{kind}, or "
                "list one path per line"
            )
        yield Entry(f"{path}:{number}", line)


def _read_raw_list(path: Path) -> Iterator[Entry]:
    """Reads WeSpeaker's raw.list, which has JSON lines, or a list of paths."""
    first = next((line for _, line in numbered_lines(path, CorpusError)), "")
    yield from read_json(path, CorpusError) if first.lstrip().startswith("{") else _read_paths(path)


def _read_table(path: Path) -> Iterator[Entry]:
    yield from read_table(path, CorpusError, _NAMES)


def _read_parquet(path: Path) -> Iterator[Entry]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        places = {what: column_of(names, of) for what, of in _NAMES.items()}
        wanted = {what: names[index] for what, index in places.items() if index is not None}
        if "path" not in wanted:
            raise CorpusError(f"{path}: has no column 'path'; it has {names[:8]}")
        number = 0
        for batch in file.iter_batches(_BLOCK, columns=list(wanted.values())):
            columns = [batch.column(name).cast(pa.large_string()).to_pylist() for name in wanted.values()]
            for row in zip(*columns, strict=True):
                number += 1
                yield entry_of_row(f"{path}, row {number}", dict(zip(wanted, row, strict=True)), CorpusError)


_READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".json": functools.partial(read_json, error=CorpusError),
    ".jsonl": functools.partial(read_json, error=CorpusError),
    ".ndjson": functools.partial(read_json, error=CorpusError),
    ".list": _read_raw_list,
    ".scp": functools.partial(read_scp, error=CorpusError),
}


def shard_bounds(n_rows: int, shard_size: int) -> Iterable[tuple[int, int]]:
    """Returns, for every shard, its first row and the row after its last."""
    return [(start, min(start + shard_size, n_rows)) for start in range(0, n_rows, shard_size)]
