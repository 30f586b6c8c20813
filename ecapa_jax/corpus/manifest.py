"""Which recordings a corpus has: Parquet, CSV, TSV, JSON lines, Kaldi's wav.scp, or a plain list of paths."""

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

_BLOCK = 1 << 16  # rows that are Python strings at a time

Row = tuple[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Manifest:
    """The recordings of a corpus, in order.

    Attributes:
      table: Arrow table with the string columns `id` and `path`, ids unique.
    """

    table: Any

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sha256 over ids and paths in order; what the files hold is not read."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _BLOCK):
            digest.update(json.dumps(self.rows(start, start + _BLOCK)).encode())
        return digest.hexdigest()

    def rows(self, start: int, stop: int) -> tuple[list[str], list[str]]:
        """Ids and paths of the recordings from `start` to `stop`."""
        part = self.table.slice(start, stop - start)
        return part["id"].to_pylist(), part["path"].to_pylist()


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads a manifest; its suffix says which kind it is.

    .parquet, .csv, .tsv, .jsonl   column `path`, and `id` where there is one; other columns are left alone
    .scp                           Kaldi: `id path` a line; commands and offsets into archives are refused
    anything else                  one path a line

    Without ids a path is its own id. Empty lines are skipped.

    Raises:
      CorpusError: it can't be read, a row has no path, or an id comes twice; naming the row.
    """
    import pyarrow as pa

    path = Path(path)
    reader = _READERS.get(path.suffix.lower(), _plain)
    try:
        rows = reader(path)
        blocks = [pa.table({"id": [], "path": []}, schema=_schema())]
        while block := list(itertools.islice(rows, _BLOCK)):
            ids, paths = zip(*block, strict=True)
            blocks.append(pa.table({"id": ids, "path": paths}, schema=_schema()))
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

    return pa.schema([("id", pa.large_string()), ("path", pa.large_string())])


def _check_unique(path: Path, ids: Any) -> None:
    import pyarrow.compute as pc

    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        first = counts.filter(pc.greater(counts.field("counts"), 1))[0]
        raise CorpusError(
            f"{path}: {first['values'].as_py()!r} comes {first['counts'].as_py()} times; ids (without ids: paths) "
            f"must be unique"
        )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and content of each line that is not empty."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                line.encode()
            except UnicodeError as error:
                raise CorpusError(f"{path}:{number}: is not UTF-8; convert the manifest to it") from error
            yield number, line.strip("\r\n")


def _plain(path: Path) -> Iterator[Row]:
    for _, line in _lines(path):
        yield line, line


def _kaldi(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        key, *rest = line.split(maxsplit=1)
        if not rest:
            raise CorpusError(f"{where}: has no path; a line of wav.scp is 'id path'")
        value = rest[0].strip()
        if value.endswith("|") or value.startswith("|"):
            raise CorpusError(
                f"{where}: is a command (a pipe), which is never run; write its output to a file, list that"
            )
        if value.rpartition(":")[2].isdecimal() and not os.path.exists(value):
            raise CorpusError(f"{where}: points into an archive ({value}); write its recordings to files, list those")
        yield key, value


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path}:{number}: is not JSON ({one_line(error)})") from error
        if not isinstance(value, dict):
            raise CorpusError(f'{path}:{number}: is no object; write {{"id": ..., "path": ...}}')
        yield _row(f"{path}:{number}", value.get("id", value.get("path")), value.get("path"))


def _delimited(path: Path, delimiter: str) -> Iterator[Row]:
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            lines = csv.reader(file, delimiter=delimiter, strict=True)
            names = next(lines, [])
            if "path" not in names:
                raise CorpusError(
                    f"{path}: its first line must name the columns, one of them 'path'; it is {names[:8]}"
                )
            at, key = names.index("path"), names.index("id") if "id" in names else names.index("path")
            for line in filter(None, lines):
                cells = dict(enumerate(line))
                yield _row(f"{path}:{lines.line_num}", cells.get(key), cells.get(at))
        except csv.Error as error:
            raise CorpusError(f"{path}:{lines.line_num}: is damaged ({error})") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if "path" not in names:
            raise CorpusError(f"{path}: has no column 'path'; it has {names[:8]}")
        key = "id" if "id" in names else "path"
        number = 0
        for batch in file.iter_batches(_BLOCK, columns=sorted({key, "path"})):
            columns = (batch.column(name).cast(pa.large_string()).to_pylist() for name in (key, "path"))
            for identity, name in zip(*columns, strict=True):
                number += 1
                yield _row(f"{path}, row {number}", identity, name)


def _row(where: str, identity: Any, path: Any) -> Row:
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    for name, value in (("path", path), ("id", identity)):
        if not isinstance(value, str) or not value:
            raise CorpusError(
                f"{where}: its {name} is {'missing' if value in (None, '') else repr(value)}; give a text"
            )
    return identity, path


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".parquet": _parquet,
    ".csv": functools.partial(_delimited, delimiter=","),
    ".tsv": functools.partial(_delimited, delimiter="\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".scp": _kaldi,
}


def shard_bounds(n_rows: int, shard_size: int) -> Iterable[tuple[int, int]]:
    """First and last-plus-one row of every shard."""
    return [(start, min(start + shard_size, n_rows)) for start in range(0, n_rows, shard_size)]
