"""The training manifest: a Parquet file of utterances, which `prepare` writes and the loader reads."""

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
    "variant": "string",
}
"""path: relative to the folder of the manifest, or absolute. start, samples: at the rate of the manifest. rate: rate of
the file, Hz. sha256: digest of the decoded 16-bit samples. shard, index: ArrayRecord file with the same audio as FLAC,
and the position in it, if `prepare` made shards. variant: name of the view of the utterance, if `views` made several;
otherwise empty. speaker: empty if unknown."""

UNNAMED = -1
"""Label of an utterance without a speaker."""


@dataclasses.dataclass(frozen=True)
class TrainingManifest:
    """Utterances to train on.

    Attributes:
      ids: identifiers of the utterances.
      files: path of the audio of each utterance: a sound file, or a shard.
      indices: [n], position in the shard; -1 for a sound file.
      starts, samples: [n], first sample and number of samples at `rate`.
      labels: [n], index of the speaker in `speakers`; `UNNAMED` if the manifest names no speaker.
      variants: name of the view of each utterance; empty if there is only one view.
      speakers: names of the speakers, sorted.
      rate: sample rate in Hz.
      fingerprint: sha256 of everything that affects the training: ids, speakers, audio.
    """

    ids: tuple[str, ...]
    files: tuple[str, ...]
    indices: Int32[np.ndarray, " utterances"]
    starts: Int64[np.ndarray, " utterances"]
    samples: Int64[np.ndarray, " utterances"]
    labels: Int32[np.ndarray, " utterances"]
    variants: tuple[str, ...]
    speakers: tuple[str, ...]
    rate: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)


def check_installed(*modules: str) -> None:
    """Checks that packages of the extra `train` are installed.

    Raises:
      TrainingError: a module is not installed.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise TrainingError(f"training needs {' and '.join(missing)}: pip install 'ecapa-jax[train]'")


def write_manifest(path: Path, rows: list[dict[str, Any]], rate: int) -> None:
    """Writes a manifest; columns that a row lacks are empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()],
        metadata={"ecapa_jax.manifest": "1", "ecapa_jax.rate": str(rate)},
    )
    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    pq.write_table(pa.table(columns, schema=schema), path)


def read_manifest(path: str | Path) -> TrainingManifest:
    """Reads a manifest.

    Raises:
      ConfigError: the file is missing, is not a manifest, or is empty.
    """
    path = Path(path)
    columns, rate = _read_columns(path)
    speakers = sorted(set(filter(None, columns["speaker"])))
    place = {speaker: index for index, speaker in enumerate(speakers)}
    return TrainingManifest(
        ids=tuple(columns["id"]),
        files=tuple(_join_folder(path.parent, s or p) for s, p in zip(columns["shard"], columns["path"], strict=True)),
        indices=np.array([-1 if index is None else index for index in columns["index"]], np.int32),
        starts=np.array(columns["start"], np.int64),
        samples=np.array(columns["samples"], np.int64),
        labels=np.array([place.get(speaker, UNNAMED) for speaker in columns["speaker"]], np.int32),
        variants=tuple(variant or "" for variant in columns["variant"]),
        speakers=tuple(speakers),
        rate=rate,
        fingerprint=_compute_fingerprint(columns),
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a manifest in the form that `write_manifest` takes.

    Raises:
      ConfigError: as `read_manifest`.
    """
    columns, _ = _read_columns(path)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _read_columns(path: Path) -> tuple[dict[str, list[Any]], int]:
    """Reads the columns of a manifest and its sample rate in Hz."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ConfigError(f"{path}: no such manifest; make one with 'ecapa-jax prepare'")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} is not a Parquet file ({error}); make one with 'ecapa-jax prepare'") from error
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if metadata.get("ecapa_jax.manifest") != "1" or set(table.column_names) | {"variant"} != set(COLUMNS):
        raise ConfigError(f"{path} is not a manifest of this version; make one with 'ecapa-jax prepare'")
    if not table.num_rows:
        raise ConfigError(f"{path} holds no utterance")
    columns = table.to_pydict()
    columns.setdefault("variant", [None] * table.num_rows)
    return columns, int(metadata["ecapa_jax.rate"])


def _join_folder(folder: Path, name: str) -> str:
    return str(folder / name)


def _compute_fingerprint(columns: dict[str, list[Any]]) -> str:
    names = ["id", "speaker", "sha256", "start", "samples"]
    if any(columns["variant"]):
        names.append("variant")
    digest = hashlib.sha256()
    for row in zip(*(columns[name] for name in names), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()
