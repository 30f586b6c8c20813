"""The manifest: which utterances there are, as one Parquet file that `prepare` writes and the loader reads."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from ecapa_jax.errors import ConfigError, TrainingError

COLUMNS = {
    "id": "string",
    "path": "string",
    "start": "int64",
    "samples": "int64",
    "speaker": "string",
    "seconds": "float64",
    "rate": "int32",
    "sha256": "string",
    "shard": "string",
    "index": "int32",
}
"""path: from the manifest's folder, or absolute. start, samples: at the manifest's rate. rate: of the file, Hz.
sha256: of the decoded 16-bit samples. shard, index: the ArrayRecord file and the place in it of the same audio as FLAC,
where `prepare` made shards."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Utterances to train on.

    Attributes:
      ids: of the utterances.
      files: path to the audio of each: a sound file, or a shard.
      indices: [n] place in the shard; -1 in a sound file of its own.
      starts, samples: [n] first sample and number of samples at `rate`.
      labels: [n] row of each utterance's speaker in `speakers`.
      speakers: names, sorted.
      rate: Hz.
      fingerprint: sha256 of what decides the training: ids, speakers, audio.
    """

    ids: tuple[str, ...]
    files: tuple[str, ...]
    indices: Int32[np.ndarray, " utterances"]
    starts: Int64[np.ndarray, " utterances"]
    samples: Int64[np.ndarray, " utterances"]
    labels: Int32[np.ndarray, " utterances"]
    speakers: tuple[str, ...]
    rate: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)


def check_installed(*modules: str) -> None:
    """Refuses to begin without what the extra `train` brings.

    Raises:
      TrainingError: one of the modules is not installed.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise TrainingError(f"training needs {' and '.join(missing)}: pip install 'ecapa-jax[train]'")


def write_manifest(path: Path, rows: list[dict[str, Any]], rate: int) -> None:
    """Writes a manifest; a row's missing columns are empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()],
        metadata={"ecapa_jax.manifest": "1", "ecapa_jax.rate": str(rate)},
    )
    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    pq.write_table(pa.table(columns, schema=schema), path)


def read_manifest(path: str | Path) -> Manifest:
    """Reads a manifest.

    Raises:
      ConfigError: it is missing, no manifest of ours, or empty.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such manifest; make one with 'ecapa-jax prepare'")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} is no Parquet file ({error}); make it with 'ecapa-jax prepare'") from error
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if metadata.get("ecapa_jax.manifest") != "1" or set(table.column_names) != set(COLUMNS):
        raise ConfigError(f"{path} is no manifest of this version; make it with 'ecapa-jax prepare'")
    if not table.num_rows:
        raise ConfigError(f"{path} holds no utterance")
    columns = table.to_pydict()
    speakers, labels = np.unique(np.array(columns["speaker"]), return_inverse=True)
    return Manifest(
        ids=tuple(columns["id"]),
        files=tuple(_located(path.parent, s or p) for s, p in zip(columns["shard"], columns["path"], strict=True)),
        indices=np.array([-1 if index is None else index for index in columns["index"]], np.int32),
        starts=np.array(columns["start"], np.int64),
        samples=np.array(columns["samples"], np.int64),
        labels=labels.astype(np.int32),
        speakers=tuple(map(str, speakers)),
        rate=int(metadata["ecapa_jax.rate"]),
        fingerprint=_fingerprint(columns),
    )


def _located(folder: Path, name: str) -> str:
    return str(folder / name)


def _fingerprint(columns: dict[str, list[Any]]) -> str:
    digest = hashlib.sha256()
    for row in zip(*(columns[name] for name in ("id", "speaker", "sha256", "start", "samples")), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()
