"""The output directory of a corpus: its description, which shards are done, and writing shards whole.

_corpus.json            schema, fingerprints of manifest and model, shard size, embedding size
shard-000000.parquet    id, embedding (fixed-size list of float32), seconds, error; in the manifest's order
.lock                   held by the run that writes

Readers of Parquet folders skip names that start with a dot or an underscore, so the folder itself is the data set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecapa_jax.corpus.shard import ShardEmbeddings
from ecapa_jax.errors import CorpusError
from ecapa_jax.files.atomic import replacing_file

SCHEMA = 1
_KEY = b"ecapa_jax"
_OURS = (".lock", "._corpus.json.partial")  # prefixes of the files that a run leaves if it is killed at its start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Everything that determines the embeddings of a run. Runs that differ in any field can't share a directory.

    Attributes:
      manifest: fingerprint of the manifest.
      model: fingerprint of the encoder.
      n_rows: number of rows in the manifest.
      shard_size: rows of a shard; the last shard may have fewer.
      short: what is done with recordings that are too short.
      embedding_dim: length of an embedding.
      vad: whether silence is cut away.
      schema: schema number of the directory.
    """

    manifest: str
    model: str
    n_rows: int
    shard_size: int
    short: str
    embedding_dim: int
    vad: bool = False
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields to store; `vad` only if it is on, because older directories have no such field."""
        fields = dataclasses.asdict(self)
        return fields if self.vad else {name: value for name, value in fields.items() if name != "vad"}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all fields; stored in every shard."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """A finished shard.

    Attributes:
      rows: number of recordings in the shard.
      errors: number of recordings without an embedding.
      seconds: duration of the speech in the other recordings.
    """

    rows: int
    errors: int
    seconds: float


_CHANGED = {
    "manifest": "the manifest has changed since",
    "model": "it was made with another model",
    "n_rows": "the manifest has changed since",
    "shard_size": "it was made with another --shard-size",
    "short": "it was made with another --short",
    "vad": "one of the two runs has --vad",
}


class OutputFolder:
    """An output directory that this process writes; `open_output` makes it."""

    def __init__(self, folder: Path, description: Description):
        self.folder = folder
        self.description = description

    def path(self, index: int) -> Path:
        """Returns the path of a shard."""
        return self.folder / f"shard-{index:06d}.parquet"

    def find_shard(self, index: int, n_rows: int) -> ShardSummary | None:
        """Returns the summary of a shard; None if it is missing or damaged, so that it must be made again.

        Raises:
          CorpusError: the file belongs to another run.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(index)
        if not path.exists():
            return None
        try:
            with pq.ParquetFile(path) as file:
                note = json.loads((file.schema_arrow.metadata or {}).get(_KEY, b"{}"))
                whole = file.metadata.num_rows == n_rows
        except (OSError, ValueError, pa.ArrowException):
            return None
        if note.get("run") != self.description.fingerprint or note.get("shard") != index or not whole:
            raise CorpusError(f"{path} does not belong to this run; choose another output, or move the file away")
        return ShardSummary(n_rows, note["errors"], note["seconds"])

    def write(self, index: int, ids: Sequence[str], embedded: ShardEmbeddings) -> ShardSummary:
        """Writes a shard whole: into a temporary sibling, synced, renamed.

        Raises:
          CorpusError: the shard can't be written. Nothing of it is left, and finished shards stay.
        """
        import pyarrow.parquet as pq

        errors = sum(error is not None for error in embedded.errors)
        summary = ShardSummary(len(ids), errors, float(np.nansum(embedded.seconds)))
        note = {"run": self.description.fingerprint, "shard": index, "errors": errors, "seconds": summary.seconds}
        table = shard_table(ids, embedded).replace_schema_metadata({_KEY: json.dumps(note).encode()})
        path = self.path(index)
        path.with_name(f".{path.name}.partial").unlink(missing_ok=True)  # what a killed run of version 0.1 left
        with replacing_file(path, error=CorpusError, sync=True) as temporary:
            pq.write_table(table, temporary, compression="zstd", use_dictionary=False)
        return summary


@contextlib.contextmanager
def open_output(folder: str | os.PathLike[str], description: Description) -> Iterator[OutputFolder]:
    """Makes or continues an output directory, locked against other runs until the end of the context.

    Raises:
      CorpusError: the directory holds other files or the run of another manifest or model, is in use, or can't be
        written.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        try:
            if not folder.is_dir():
                folder.mkdir()
            elif not (folder / "_corpus.json").exists() and (foreign := _find_foreign_files(folder)):
                raise CorpusError(
                    f"{folder} holds {foreign[0]} and is not a corpus; choose an empty or a new directory"
                )
            stack.enter_context(_lock(folder))
            _check_description(folder / "_corpus.json", description)
        except OSError as error:
            raise CorpusError(f"{folder} can't be written: {error.strerror or error}") from error
        yield OutputFolder(folder, description)


def _find_foreign_files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith(_OURS))


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Locks the directory. The kernel releases the lock when the process ends, even if it is killed."""
    import filelock

    try:
        lock = filelock.FileLock(folder / ".lock", timeout=0).acquire()
    except filelock.Timeout as error:
        raise CorpusError(f"{folder} is in use by another run; wait for it, or choose another output") from error
    with lock:
        yield


def shard_table(ids: Sequence[str], embedded: ShardEmbeddings) -> Any:
    """Makes the Arrow table of a shard; embedding and seconds are null for recordings with an error."""
    import pyarrow as pa

    dim = embedded.embeddings.shape[1]
    failed = np.array([error is not None for error in embedded.errors], bool)
    values = pa.array(embedded.embeddings.reshape(-1))
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(values, dim, mask=pa.array(failed)),
            "seconds": pa.array(embedded.seconds, mask=failed),
            "error": pa.array(embedded.errors, pa.string()),
        }
    )


def _check_description(path: Path, description: Description) -> None:
    """Writes the description to a new directory, or compares it with the description of an existing one."""
    wanted = description.to_dict()
    if not path.exists():
        with replacing_file(path, error=CorpusError, sync=True) as temporary:
            temporary.write_text(json.dumps(wanted, indent=2) + "\n", "utf-8")
        return
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise CorpusError(f"{path} is damaged ({error}); choose another output") from error
    if found.get("schema") != SCHEMA:
        raise CorpusError(
            f"{path} has schema {found.get('schema')}, this version writes {SCHEMA}; choose another output"
        )
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            reason = _CHANGED.get(name, f"{name} differs")
            raise CorpusError(
                f"{path.parent} can't be continued: {reason}; use the earlier settings, or choose another output"
            )
