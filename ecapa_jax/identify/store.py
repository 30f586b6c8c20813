"""SpeakerStore: enrol speakers, and find out who speaks."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from types import TracebackType

import jax
import numpy as np
from jaxtyping import Float, Float32

from ecapa_jax.audio.load import AudioSource, is_silent, name_of
from ecapa_jax.encoder import Short, SpeakerEncoder
from ecapa_jax.errors import AudioError, StoreError
from ecapa_jax.identify.database import Database, Speaker, Utterance, checked_name
from ecapa_jax.masks import bucket_length
from ecapa_jax.scoring.config import Scoring
from ecapa_jax.scoring.scorer import ScoringName, checked_threshold
from ecapa_jax.scoring.search import search

SMALLEST_CAPACITY = 1024
"""Rows that a gallery has room for at least: with room, an enrolment does not compile the search anew."""


@dataclasses.dataclass(frozen=True)
class Enrolment:
    """What an enrolment did.

    Attributes:
      name: the speaker's, as stored.
      added: utterances that were new.
      known: utterances that had been enrolled before, and were left as they are.
    """

    name: str
    added: int
    known: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A speaker who may be the one.

    Attributes:
      name: the speaker's.
      score: cosine with the speaker's centroid, in [-1, 1].
    """

    name: str
    score: float


@dataclasses.dataclass(frozen=True)
class Identification:
    """The answer to "who is it?".

    Attributes:
      speaker: the best candidate's name if its score is at least `threshold`; None means unknown, or that there is no
        threshold to decide with.
      threshold: the one used; None where neither the caller nor the model gives one.
      candidates: the best, by falling score.
    """

    speaker: str | None
    threshold: float | None
    candidates: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """All enrolled speakers as one array.

    Attributes:
      names: of the speakers.
      centroids: [capacity, embedding_dim], length 1; rows from `len(names)` on are padding.
    """

    names: list[str]
    centroids: Float32[jax.Array, "capacity embedding"]


class SpeakerStore:
    """Enrolled speakers in a file, bound to the model that embeds them.

    A speaker is one centroid: the mean of his utterances' embeddings, each scaled to length 1 first, scaled to length 1
    again. All centroids are compared with every query; no approximate index is involved.

        with SpeakerStore.open("team.db", ecapa_jax.load()) as store:
            store.enroll("Ann", ["ann_1.wav", "ann_2.wav"])
            store.identify("who.wav").speaker
    """

    def __init__(self, database: Database, encoder: SpeakerEncoder):
        self.database = database
        self.encoder = encoder
        self._gallery: tuple[tuple[int, int], Gallery] | None = None
        database.bind(encoder.fingerprint, encoder.config.ecapa.embedding_dim)

    @classmethod
    def open(cls, path: str | os.PathLike[str], encoder: SpeakerEncoder, *, create: bool = True) -> SpeakerStore:
        """Opens a store.

        Args:
          path: the file.
          encoder: the model. Embeddings of different models can't be compared, so a store takes only its first one.
          create: make the file where it is not there.

        Raises:
          StoreError: it can't be opened, or belongs to another model.
        """
        database = Database.open(path, create=create)
        try:
            return cls(database, encoder)
        except BaseException:
            database.close()
            raise

    def enroll(self, name: str, sources: Sequence[AudioSource], *, short: Short = "error") -> Enrolment:
        """Enrols utterances of a speaker, new or known; all of them or none.

        A recording that the speaker has already (the same samples) is left as it is, so that a call may be repeated.

        Args:
          name: any text on one line.
          sources, short: as for `SpeakerEncoder.embed`.

        Raises:
          AudioError: a recording can't be embedded, or has no signal.
          StoreError: the name is none, no recordings are given, or the store can't be written.
        """
        utterances = embed_utterances(self.encoder, sources, short=short)
        name = checked_name(name)
        added = self.database.enroll(name, utterances)
        return Enrolment(name, added, len(utterances) - added)

    def enroll_embeddings(
        self, names: Sequence[str], embeddings: Float[np.ndarray, "n embedding"], *, source: str = "embedding"
    ) -> int:
        """Enrols embeddings that this store's model made, in one transaction.

        Args:
          names: of the speaker of each; one may come several times.
          embeddings: [n, embedding_dim], as `SpeakerEncoder.embed` or a corpus gives them.
          source: where they come from, for the reader.

        Returns:
          How many were new.

        Raises:
          StoreError: shapes do not fit, a value is not finite, a row is zero, or as for `enroll`.
        """
        values = np.ascontiguousarray(embeddings, np.float32)
        self._check_embeddings(names, values)
        checked = [checked_name(name) for name in names]
        with self.database.writing() as connection:
            everyone = [(name,) for name in dict.fromkeys(checked)]
            connection.executemany("INSERT INTO speaker (name) VALUES (?) ON CONFLICT DO NOTHING", everyone)
            before = connection.total_changes
            connection.executemany(
                "INSERT INTO utterance (speaker, source, digest, embedding) "
                "SELECT id, ?, ?, ? FROM speaker WHERE name = ? ON CONFLICT DO NOTHING",
                ((source, digest_of(row), row.tobytes(), name) for name, row in zip(checked, values, strict=True)),
            )
            return connection.total_changes - before

    def identify(
        self, source: AudioSource, *, top: int = 5, threshold: float | None = None, short: Short = "error"
    ) -> Identification:
        """Finds out who speaks.

        Args:
          source, short: a recording, as for `SpeakerEncoder.embed`.
          top: how many candidates to return at most.
          threshold: least cosine to be the speaker, in [-1, 1]; None takes the model's, if it has one for cosines of
            whole recordings.

        Raises:
          AudioError: the recording can't be embedded, or has no signal.
          ConfigError: the threshold is outside [-1, 1].
          StoreError: `top` is less than one, or the store can't be read.
        """
        if top < 1:
            raise StoreError(f"{top} candidates are asked for; ask for 1 or more")
        threshold = None if threshold is None else checked_threshold(threshold)
        embedding = self.encoder.embed([_read(self.encoder, source, short)])[0]
        return self.identify_embedding(embedding, top=top, threshold=threshold)

    def identify_embedding(
        self, embedding: Float[np.ndarray, " embedding"], *, top: int = 5, threshold: float | None = None
    ) -> Identification:
        """As `identify`, from an embedding that this store's model made."""
        if top < 1:
            raise StoreError(f"{top} candidates are asked for; ask for 1 or more")
        threshold = self._scoring.threshold if threshold is None else checked_threshold(threshold)
        candidates = self.search(embedding[None], top=top)[0]
        best = candidates[0] if candidates else None
        decided = best is not None and threshold is not None and best.score >= threshold
        return Identification(best.name if best and decided else None, threshold, tuple(candidates))

    def search(self, embeddings: Float[np.ndarray, "n embedding"], *, top: int = 5) -> list[list[Candidate]]:
        """The best candidates of each of n embeddings of this store's model, by falling score."""
        gallery = self.gallery()
        top = min(top, len(gallery.names))
        if not top:
            return [[] for _ in embeddings]
        queries = self._centred(np.asarray(embeddings, np.float32))
        scores, rows = search(queries, gallery.centroids, top, np.asarray(len(gallery.names), np.int32))
        return [
            [Candidate(gallery.names[row], float(np.clip(score, -1, 1))) for score, row in zip(*pair, strict=True)]
            for pair in zip(np.asarray(scores), np.asarray(rows).tolist(), strict=True)
        ]

    def gallery(self) -> Gallery:
        """All centroids, read again only after a change; in order of first enrolment.

        Raises:
          StoreError: the store can't be read.
        """
        version = self.database.version
        if self._gallery is None or self._gallery[0] != version:
            self._gallery = None  # two would be in memory at once
            self._gallery = version, self._load()
        return self._gallery[1]

    def speakers(self) -> list[Speaker]:
        """Everyone enrolled, by name."""
        return self.database.speakers()

    def remove(self, name: str) -> int:
        """Removes a speaker; returns how many utterances were enrolled.

        Raises:
          StoreError: there is no such speaker, or the store can't be written.
        """
        return self.database.remove(name)

    def close(self) -> None:
        """Closes the file."""
        self.database.close()

    def __enter__(self) -> SpeakerStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _scoring(self) -> Scoring:
        """The model's scoring as far as one embedding a recording goes; its threshold only if it holds for that."""
        name: ScoringName = "cosine_less_mean" if self.encoder.scorer.scoring.subtract_mean else "cosine"
        return self.encoder.scorer.named(name).scoring

    def _load(self) -> Gallery:
        dim = self.encoder.config.ecapa.embedding_dim
        with self.database.reading() as connection:
            speakers = connection.execute("SELECT id, name FROM speaker ORDER BY id").fetchall()
            ids = np.array([identity for identity, _ in speakers], np.int64)
            centroids = _aligned_zeros(bucket_length(len(ids), SMALLEST_CAPACITY), dim)
            for owners, embeddings in self.database.embeddings(connection, dim):
                rows = np.searchsorted(ids, owners)
                order = np.argsort(rows, kind="stable")
                present, starts = np.unique(rows[order], return_index=True)
                centroids[present] += np.add.reduceat(_unit(self._centred(embeddings[order])), starts, axis=0)
        for start in range(0, len(ids), 1 << 16):  # in place: a million speakers are 768 MB
            centroids[start : start + (1 << 16)] = _unit(centroids[start : start + (1 << 16)])
        return Gallery([name for _, name in speakers], jax.device_put(centroids, jax.local_devices()[0]))

    def _centred(self, embeddings: Float32[np.ndarray, "n embedding"]) -> Float32[np.ndarray, "n embedding"]:
        """Less the mean embedding where the model's scores are made so."""
        if self._scoring.subtract_mean and self.encoder.scorer.embedding_mean is not None:
            return embeddings - self.encoder.scorer.embedding_mean.astype(np.float32)
        return embeddings

    def _check_embeddings(self, names: Sequence[str], embeddings: Float32[np.ndarray, "n embedding"]) -> None:
        dim = self.encoder.config.ecapa.embedding_dim
        if embeddings.shape != (len(names), dim):
            raise StoreError(
                f"{len(names)} names and embeddings of shape {embeddings.shape}; give [{len(names)}, {dim}]"
            )
        wrong = ~np.isfinite(embeddings).all(axis=1) | ~embeddings.any(axis=1)
        if wrong.any():
            raise StoreError(f"embedding {int(np.argmax(wrong))} is zero or not finite; leave it out")


def embed_utterances(
    encoder: SpeakerEncoder, sources: Sequence[AudioSource], *, short: Short = "error"
) -> list[Utterance]:
    """Recordings as a store keeps them: what can fail in an enrolment, before the store is touched.

    Args:
      encoder: the store's model.
      sources, short: as for `SpeakerEncoder.embed`.

    Raises:
      AudioError: a recording can't be embedded, or has no signal.
      StoreError: there are none.
    """
    if not sources:
        raise StoreError("no recordings given; give one or more")
    waveforms = [_read(encoder, source, short) for source in sources]
    return [
        Utterance(name_of(source), digest_of(waveform), embedding)
        for source, waveform, embedding in zip(sources, waveforms, encoder.embed(waveforms), strict=True)
    ]


def _read(encoder: SpeakerEncoder, source: AudioSource, short: Short) -> Float32[np.ndarray, " samples"]:
    waveform = encoder.read(source, short=short)
    if is_silent(waveform):
        raise AudioError(f"{name_of(source)}: has no signal (all samples are equal); give a recording of speech")
    return waveform


def _aligned_zeros(n: int, dim: int) -> Float32[np.ndarray, "n embedding"]:
    """Zeros at an address that JAX takes over on a CPU; it would copy others, and a gallery can be large."""
    values = np.zeros(n * dim + 16, np.float32)
    start = -values.ctypes.data % 64 // 4
    return values[start : start + n * dim].reshape(n, dim)


def _unit(rows: Float32[np.ndarray, "n embedding"]) -> Float32[np.ndarray, "n embedding"]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def digest_of(values: Float32[np.ndarray, " n"]) -> bytes:
    """What tells an utterance from the others of its speaker: a hash of its samples."""
    return hashlib.sha256(values.tobytes()).digest()[:16]
