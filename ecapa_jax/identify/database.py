"""Enrolled speakers in one SQLite file, which several processes can use and which survives a killed process.

SQLite uses a rollback journal rather than a write-ahead log: the store stays one file, works on read-only media and
network file systems, and enrolments are too rare for a write-ahead log to be worth it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float32, Int64

from ecapa_jax.errors import StoreError, UnknownSpeakerError

SCHEMA = 1
APPLICATION_ID = 0x45434A58  # "ECJX", at a fixed place of the file
WAIT_SECONDS = 30.0
"""Longest time that a write waits for other processes."""

_BLOCK = 20_000  # rows held as Python objects at once
_LONGEST_NAME = 200
_TABLES = """
CREATE TABLE model (fingerprint TEXT NOT NULL, embedding_dim INTEGER NOT NULL);
CREATE TABLE speaker (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE utterance (
  id INTEGER PRIMARY KEY,
  speaker INTEGER NOT NULL REFERENCES speaker ON DELETE CASCADE,
  source TEXT NOT NULL,
  digest BLOB NOT NULL,
  embedding BLOB NOT NULL,
  UNIQUE (speaker, digest)
);
"""


@dataclasses.dataclass(frozen=True)
class Speaker:
    """An enrolled speaker.

    Attributes:
      name: unique in the store.
      utterances: number of enrolled utterances.
    """

    name: str
    utterances: int


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """An utterance to enrol.

    Attributes:
      source: name of the recording, for people.
      digest: distinguishes it from the speaker's other utterances.
      embedding: [embedding_dim] float32.
    """

    source: str
    digest: bytes
    embedding: Float32[np.ndarray, " embedding"]


class Database:
    """The file of a store, without the model. `Database.open` makes it, and threads can share it."""

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()
        self._writes = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = False) -> Database:
        """Opens the file of a store.

        Args:
          path: the file.
          create: make the file if it does not exist.

        Raises:
          StoreError: the file does not exist, is not a store, is damaged, or was written by a newer version.
        """
        path = Path(path)
        if os.path.isdir(path):
            raise StoreError(f"{path} is a directory; a speaker store is a file")
        if not create and not os.path.exists(path):
            raise StoreError(
                f"{path}: no such speaker store; make it with ecapa-jax enroll NAME FILES... --store {path}"
            )
        with _explain_errors(path):
            # `rw` falls back to reading if the file is write-protected.
            address = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
            connection = sqlite3.connect(
                address, uri=True, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
        database = cls(path, connection)
        try:
            database._check_schema(create)
        except BaseException:
            database.close()
            raise
        return database

    def _check_schema(self, create: bool) -> None:
        with _explain_errors(self.path):
            with self.reading():
                (version,) = self._fetch_row("PRAGMA user_version")
                (application,) = self._fetch_row("PRAGMA application_id")
                (tables,) = self._fetch_row("SELECT count(*) FROM sqlite_master")
            if not tables and application == 0:
                if not create:
                    raise StoreError(f"{self.path} is empty; enrol speakers with ecapa-jax enroll")
                self._create()
            elif application != APPLICATION_ID:
                raise StoreError(f"{self.path} is a database of another program; choose another store")
            elif version != SCHEMA:
                raise StoreError(
                    f"{self.path} has schema {version}, this version reads {SCHEMA}; use the version that wrote it"
                )
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.execute("PRAGMA synchronous = FULL")  # an enrolment that was reported survives a power cut

    def _create(self) -> None:
        with self.writing() as connection:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return  # another process was faster
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def bind(self, fingerprint: str, embedding_dim: int) -> None:
        """Binds a new store to a model; an existing store accepts only the model it is bound to.

        Raises:
          StoreError: the store is bound to another model.
        """
        with _explain_errors(self.path), self._lock:
            found = self._connection.execute("SELECT fingerprint, embedding_dim FROM model").fetchone()
            if found is None:
                with self.writing() as connection:
                    connection.execute(
                        "INSERT INTO model SELECT ?, ? WHERE NOT EXISTS (SELECT * FROM model)",
                        (fingerprint, embedding_dim),
                    )
                found = self._fetch_row("SELECT fingerprint, embedding_dim FROM model")
        if found != (fingerprint, embedding_dim):
            raise StoreError(
                f"{self.path} holds embeddings of another model ({str(found[0])[:12]}, this is {fingerprint[:12]}), "
                f"which can't be compared; name that model, or enrol into another store"
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Runs one transaction: either all of it is in the file afterwards, or nothing.

        Raises:
          StoreError: the store is write-protected, the disk is full, or other processes keep it busy.
        """
        with _explain_errors(self.path), self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
                self._writes += 1
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def enroll(self, name: str, utterances: Sequence[Utterance]) -> int:
        """Adds utterances to a new or known speaker; returns how many were new.

        Raises:
          StoreError: as for `writing`, or the name is invalid.
        """
        name = check_name(name)
        with self.writing() as connection:
            connection.execute("INSERT INTO speaker (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
            (speaker,) = connection.execute("SELECT id FROM speaker WHERE name = ?", (name,)).fetchone()
            (dim,) = connection.execute("SELECT embedding_dim FROM model").fetchone() or (None,)
            rows = [(speaker, u.source, u.digest, to_blob(u.embedding, dim, u.source)) for u in utterances]
            before = connection.total_changes
            connection.executemany(
                "INSERT INTO utterance (speaker, source, digest, embedding) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )
            return connection.total_changes - before

    def remove(self, name: str) -> int:
        """Removes a speaker and all the speaker's utterances; returns how many there were.

        Raises:
          UnknownSpeakerError: no speaker has this name.
          StoreError: as for `writing`.
        """
        name = unicodedata.normalize("NFC", name).strip()  # unchecked: an older version may have taken it
        if not name:
            raise UnknownSpeakerError("a speaker's name is empty; give one")
        with self.writing() as connection:
            found = connection.execute("SELECT id FROM speaker WHERE name = ?", (name,)).fetchone()
            if found is None:
                raise UnknownSpeakerError(
                    f"{self.path}: no speaker is named {name!r}; ecapa-jax list shows who is enrolled"
                )
            (count,) = connection.execute("SELECT count(*) FROM utterance WHERE speaker = ?", found).fetchone()
            connection.execute("DELETE FROM speaker WHERE id = ?", found)
            return int(count)

    def speakers(self) -> list[Speaker]:
        """Returns the enrolled speakers by name."""
        query = (
            "SELECT name, count(utterance.id) FROM speaker LEFT JOIN utterance ON utterance.speaker = speaker.id "
            "GROUP BY speaker.id ORDER BY name"
        )
        with _explain_errors(self.path), self._lock:
            return [Speaker(name, count) for name, count in self._connection.execute(query)]

    @property
    def version(self) -> tuple[int, int]:
        """A value that differs after any change, whichever process made it."""
        with _explain_errors(self.path), self._lock:
            return self._fetch_row("PRAGMA data_version")[0], self._writes

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lets several queries see one state of the store."""
        with _explain_errors(self.path), self._lock:
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    def embeddings(
        self, connection: sqlite3.Connection, embedding_dim: int
    ) -> Iterator[tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, "n embedding"]]]:
        """Yields blocks of speakers' row ids and embeddings, in order of enrolment.

        Raises:
          StoreError: the file is damaged.
        """
        cursor = connection.execute("SELECT id, speaker, embedding FROM utterance ORDER BY id")
        while rows := cursor.fetchmany(_BLOCK):
            speakers = np.array([row[1] for row in rows], np.int64)
            blobs = [row[2] for row in rows]
            if any(type(blob) is not bytes or len(blob) != 4 * embedding_dim for blob in blobs):
                blobs = [self._convert_blob(connection, row[0], row[2], embedding_dim) for row in rows]
            values = np.frombuffer(b"".join(blobs), "<f4").reshape(len(rows), embedding_dim)
            if not np.isfinite(values).all():
                index = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
                raise self._explain_damage(connection, rows[index][0], "holds values that are not finite")
            yield speakers, values.astype(np.float32, copy=False)

    def _convert_blob(self, connection: sqlite3.Connection, row: int, blob: object, embedding_dim: int) -> bytes:
        """Returns the float32 values of an embedding; version 0.1 could write float64 values."""
        if isinstance(blob, bytes) and len(blob) == 4 * embedding_dim:
            return blob
        if isinstance(blob, bytes) and len(blob) == 8 * embedding_dim:
            values = np.frombuffer(blob, "<f8")
            if np.isfinite(values).all() and np.abs(values).max() < np.finfo(np.float32).max:
                return values.astype("<f4").tobytes()
        size = len(blob) if isinstance(blob, bytes | str) else 0
        raise self._explain_damage(connection, row, f"has {size} instead of {4 * embedding_dim} bytes")

    def _explain_damage(self, connection: sqlite3.Connection, row: int, what: str) -> StoreError:
        found = connection.execute(
            "SELECT name, source FROM utterance LEFT JOIN speaker ON speaker.id = utterance.speaker "
            "WHERE utterance.id = ?",
            (row,),
        ).fetchone()
        name, source = found or ("?", "?")
        return StoreError(
            f"{self.path} is damaged: the embedding of {source!r} of the speaker {name!r} {what}; remove the speaker "
            "(ecapa-jax remove) and enrol the recordings again, or restore a copy"
        )

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _fetch_row(self, query: str) -> tuple:
        row: tuple = self._connection.execute(query).fetchone()
        return row


def to_blob(embedding: np.ndarray, embedding_dim: int | None, source: str) -> bytes:
    """Converts an embedding to the bytes that a store holds, which are float32 values on every host.

    Raises:
      StoreError: the embedding has another size than those in the store, or holds values that are not finite.
    """
    values = np.asarray(embedding, "<f4")
    if values.ndim != 1 or embedding_dim not in (None, len(values)) or not np.isfinite(values).all():
        raise StoreError(
            f"the embedding of {source} has shape {values.shape} or values that are not finite; the store takes "
            f"{embedding_dim} finite values; nothing was enrolled"
        )
    return values.tobytes()


def check_name(name: str) -> str:
    """Returns the name in the composed form of Unicode, without surrounding spaces, so that equal names look equal.

    Raises:
      StoreError: the name is empty, longer than 200 characters, or holds invisible characters: controls, marks that
        change the direction of writing so that one name looks like another, or bytes that are not Unicode.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise StoreError("a speaker's name is empty; give one")
    if len(name) > _LONGEST_NAME:
        raise StoreError(f"a speaker's name has {len(name)} characters; give at most {_LONGEST_NAME}")
    if wrong := _find_invisible(name):
        raise StoreError(f"the speaker's name {name!a} holds {wrong[0]!a}, which is not text; leave it out")
    return name


_JOINERS = "\u200c\u200d"  # Persian, Hindi and emoji need them; between Latin letters they are invisible


def _find_invisible(name: str) -> list[str]:
    """Returns invisible characters: controls, direction marks, line separators, and bytes that are not Unicode."""
    return [
        character
        for before, character in zip(" " + name, name, strict=False)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and not (character in _JOINERS and not before.isascii())
    ]


def format_name(name: str) -> str:
    """Returns a name for display: invisible characters, which older versions accepted, are written as escapes."""
    invisible = set(_find_invisible(name))
    return "".join(ascii(character)[1:-1] if character in invisible else character for character in name)


_REASONS = {
    sqlite3.SQLITE_BUSY: f"is busy: another process has been writing for {WAIT_SECONDS:g} s; try again",
    sqlite3.SQLITE_LOCKED: "is busy: another process is writing; try again",
    sqlite3.SQLITE_FULL: "can't be written: the disk is full; make room, nothing was changed",
    sqlite3.SQLITE_READONLY: "can't be written (it or its folder is read-only); nothing was changed",
    sqlite3.SQLITE_CANTOPEN: "can't be opened; check its folder and the access rights",
    sqlite3.SQLITE_PERM: "can't be opened; check the access rights",
    sqlite3.SQLITE_AUTH: "can't be opened; check the access rights",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore a copy",
    sqlite3.SQLITE_NOTADB: "is not a speaker store, or is damaged; choose another file or restore a copy",
}


@contextlib.contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into a StoreError of one line that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", -1) & 0xFF  # the upper bits hold details
        reason = _REASONS.get(code, f"can't be read or written ({error}); check the disk")
        raise StoreError(f"{path} {reason}") from error
