"""Keeps embeddings on disk by model and content of the file, so that a new run finds what a killed run has computed.

The cache is one SQLite file. Every batch is one transaction: two processes can share the file, and a killed process
loses at most one batch.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ecapa_jax.errors import TrialError

APPLICATION_ID = 0x45434A58  # "ECJX"
SCHEMA = 1
BUSY_SECONDS = 60.0

_TABLE = """
CREATE TABLE IF NOT EXISTS embeddings (
    model TEXT NOT NULL, file BLOB NOT NULL, embedding BLOB NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (model, file)
) WITHOUT ROWID
"""

CachedEmbedding = tuple[Float32[np.ndarray, "..."], float]
"""An embedding, and the duration of the audio in seconds."""


class EmbeddingCache:
    """Embeddings of one model in a cache file.

    Args:
      path: the file; made if it doesn't exist.
      model: `SpeakerEncoder.fingerprint` of the model.
      shape: shape of one embedding.

    Raises:
      TrialError: the file can't be made, is damaged, or is not a cache.
    """

    def __init__(self, path: str | os.PathLike[str], model: str, shape: tuple[int, ...]):
        self.path = Path(path)
        self._model = model
        self._shape = shape
        with self._explain_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def get(self, files: Iterable[bytes]) -> dict[bytes, CachedEmbedding]:
        """Returns the embeddings of known files by sha256; damaged entries count as unknown."""
        found = {}
        query = "SELECT embedding, seconds FROM embeddings WHERE model = ? AND file = ?"
        with self._explain_errors():
            for file in files:
                row = self._database.execute(query, (self._model, file)).fetchone()
                if row and (embedding := self._embedding(row[0])) is not None:
                    found[file] = (embedding, float(row[1]))
        return found

    def put(self, entries: Mapping[bytes, CachedEmbedding]) -> None:
        """Adds embeddings by the sha256 of their files: all of them, or none if the process dies."""
        rows = [
            (self._model, file, np.asarray(embedding, "<f4").tobytes(), seconds)
            for file, (embedding, seconds) in entries.items()
        ]
        with self._explain_errors(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?)", rows)

    def _prepare(self) -> None:
        with self._explain_errors(), self._database:
            self._database.execute("BEGIN IMMEDIATE")
            tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            written = self._pragma("application_id"), self._pragma("user_version")
            if not tables:
                self._database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._database.execute(f"PRAGMA user_version = {SCHEMA}")
                self._database.execute(_TABLE)
            elif written != (APPLICATION_ID, SCHEMA):
                raise TrialError(f"{self.path} is not an embedding cache of this version: name another file")

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])

    def _embedding(self, content: bytes) -> Float32[np.ndarray, ...] | None:
        values = np.frombuffer(content, "<f4") if len(content) % 4 == 0 else np.empty(0)
        if values.size != np.prod(self._shape) or not np.isfinite(values).all():
            return None
        return values.reshape(self._shape).astype(np.float32)

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise TrialError(f"{self.path} can't be used as embedding cache: {error}") from error
        except sqlite3.DatabaseError as error:
            raise TrialError(f"{self.path} is damaged or not an embedding cache ({error}): delete it") from error
        except OSError as error:
            raise TrialError(f"{self.path} can't be made: {error.strerror or error}") from error
