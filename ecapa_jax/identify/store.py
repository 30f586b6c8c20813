"""SpeakerStore: enrols speakers and identifies the speaker of a recording."""

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
from ecapa_jax.config import ScoringName, Short
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import AudioError, StoreError
from ecapa_jax.identify.database import Database, Speaker, Utterance, check_name
from ecapa_jax.masks import bucket_length
from ecapa_jax.modes import in_library_modes
from ecapa_jax.scoring.config import Scoring
from ecapa_jax.scoring.scorer import check_threshold
from ecapa_jax.scoring.search import search
from ecapa_jax.vad.gate import require_speech

SMALLEST_CAPACITY = 1024
"""Smallest number of rows in a gallery; spare rows avoid a new compilation of the search for each enrolment."""


@dataclasses.dataclass(frozen=True)
class Enrolment:
    """The result of an enrolment.

    Attributes:
      name: the speaker's name, as stored.
      added: number of new utterances.
      known: number of utterances that were enrolled already, which the call left unchanged.
    """

    name: str
    added: int
    known: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A speaker who may have made the recording.

    Attributes:
      name: the speaker's name.
      score: cosine with the speaker's centroid, in [-1, 1].
    """

    name: str
    score: float


@dataclasses.dataclass(frozen=True)
class Identification:
    """The answer to "who is it?".

    Attributes:
      speaker: the best candidate's name if its score is at least `threshold`; None means unknown, or that there is no
        threshold.
      threshold: the threshold used; None if neither the caller nor the model gives one.
      candidates: the best speakers, by descending score.
    """

    speaker: str | None
    threshold: float | None
    candidates: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """All enrolled speakers as one array.

    Attributes:
      names: the speakers' names.
      centroids: [capacity, embedding_dim], length 1; rows from `len(names)` on are padding.
    """

    names: list[str]
    centroids: Float32[jax.Array, "capacity embedding"]


class SpeakerStore:
    """Enrolled speakers in a file, bound to the model that embeds them.

    Each speaker has one centroid: the embeddings of the speaker's utterances are scaled to length 1 and averaged, and
    the mean is scaled to length 1 again. A query is compared with all centroids, without an approximate index.

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
          encoder: the model. Embeddings of different models can't be compared, so a store accepts only its first model.
          create: make the file if it does not exist.

        Raises:
          StoreError: the file can't be opened, or belongs to another model.
        """
        database = Database.open(path, create=create)
        try:
            return cls(database, encoder)
        except BaseException:
            database.close()
            raise

    def enroll(
        self, name: str, sources: Sequence[AudioSource], *, short: Short = "error", any_sound: bool = False
    ) -> Enrolment:
        """Enrols utterances of a new or known speaker: all of them, or none if one can't be used.

        A recording whose samples are enrolled already is left as it is, so that a call can be repeated.

        Args:
          name: any text on one line.
          sources, short: as for `SpeakerEncoder.embed`.
          any_sound: whether recordings without speech are taken, too.

        Raises:
          AudioError: a recording can't be embedded, or holds less than half a second of speech.
          StoreError: the name is invalid, no recordings are given, or the store can't be written.
        """
        utterances = embed_utterances(self.encoder, sources, short=short, any_sound=any_sound)
        name = check_name(name)
        added = self.database.enroll(name, utterances)
        return Enrolment(name, added, len(utterances) - added)

    def enroll_embeddings(
        self, names: Sequence[str], embeddings: Float[np.ndarray, "n embedding"], *, source: str = "embedding"
    ) -> int:
        """Enrols embeddings that the store's model made, in one transaction.

        Args:
          names: the speaker of each embedding; a name can occur several times.
          embeddings: [n, embedding_dim], from `SpeakerEncoder.embed` or a corpus.
          source: where they come from, for people.

        Returns:
          The number of new embeddings.

        Raises:
          StoreError: the shapes do not match, a value is not finite, a row is zero, or as for `enroll`.
        """
        values = np.ascontiguousarray(embeddings, np.float32)
        self._check_embeddings(names, values)
        valid_names = [check_name(name) for name in names]
        with self.database.writing() as connection:
            speaker_rows = [(name,) for name in dict.fromkeys(valid_names)]
            connection.executemany("INSERT INTO speaker (name) VALUES (?) ON CONFLICT DO NOTHING", speaker_rows)
            before = connection.total_changes
            connection.executemany(
                "INSERT INTO utterance (speaker, source, digest, embedding) "
                "SELECT id, ?, ?, ? FROM speaker WHERE name = ? ON CONFLICT DO NOTHING",
                (
                    (source, compute_digest(row), row.tobytes(), name)
                    for name, row in zip(valid_names, values, strict=True)
                ),
            )
            return connection.total_changes - before

    def identify(
        self,
        source: AudioSource,
        *,
        top: int = 5,
        threshold: float | None = None,
        short: Short = "error",
        any_sound: bool = False,
    ) -> Identification:
        """Identifies the speaker of a recording.

        Args:
          source, short: a recording, as for `SpeakerEncoder.embed`.
          top: largest number of candidates to return.
          threshold: smallest cosine at which a candidate counts as the speaker, in [-1, 1]; None takes the model's
            threshold, if it has one for cosines of whole recordings.
          any_sound: whether a recording without speech is taken, too.

        Raises:
          AudioError: the recording can't be embedded, or holds less than half a second of speech.
          ConfigError: the threshold is outside [-1, 1].
          StoreError: `top` is less than one, or the store can't be read.
        """
        if top < 1:
            raise StoreError(f"{top} candidates are asked for; ask for 1 or more")
        threshold = None if threshold is None else check_threshold(threshold)
        embedding = self.encoder.embed([_read(self.encoder, source, short, any_sound)])[0]
        return self.identify_embedding(embedding, top=top, threshold=threshold)

    def identify_embedding(
        self, embedding: Float[np.ndarray, " embedding"], *, top: int = 5, threshold: float | None = None
    ) -> Identification:
        """Does what `identify` does, from an embedding that the store's model made."""
        if top < 1:
            raise StoreError(f"{top} candidates are asked for; ask for 1 or more")
        threshold = self.threshold if threshold is None else check_threshold(threshold)
        candidates = self.search(embedding[None], top=top)[0]
        best = candidates[0] if candidates else None
        decided = best is not None and threshold is not None and best.score >= threshold
        return Identification(best.name if best and decided else None, threshold, tuple(candidates))

    @in_library_modes
    def search(self, embeddings: Float[np.ndarray, "n embedding"], *, top: int = 5) -> list[list[Candidate]]:
        """Returns the best candidates for each of n embeddings of the store's model, by descending score."""
        gallery = self.gallery()
        top = min(top, len(gallery.names))
        if not top:
            return [[] for _ in embeddings]
        queries = self._subtract_mean(np.asarray(embeddings, np.float32))
        scores, rows = search(queries, gallery.centroids, top, np.asarray(len(gallery.names), np.int32))
        return [
            [Candidate(gallery.names[row], float(np.clip(score, -1, 1))) for score, row in zip(*pair, strict=True)]
            for pair in zip(np.asarray(scores), np.asarray(rows).tolist(), strict=True)
        ]

    def gallery(self) -> Gallery:
        """Returns all centroids in order of first enrolment; reads the file again only after a change.

        Raises:
          StoreError: the store can't be read.
        """
        version = self.database.version
        if self._gallery is None or self._gallery[0] != version:
            self._gallery = None  # otherwise two galleries would be in memory
            self._gallery = version, self._load_gallery()
        return self._gallery[1]

    def speakers(self) -> list[Speaker]:
        """Returns the enrolled speakers by name."""
        return self.database.speakers()

    def remove(self, name: str) -> int:
        """Removes a speaker; returns the number of utterances removed.

        Raises:
          UnknownSpeakerError: no speaker has this name.
          StoreError: the store can't be written.
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
    def threshold(self) -> float | None:
        """The smallest cosine at which the model takes a candidate for the speaker; None if it publishes none."""
        return self._scoring.threshold

    @property
    def _scoring(self) -> Scoring:
        """The model's scoring for one embedding per recording; it has a threshold only if that is for such scores."""
        name: ScoringName = "cosine_less_mean" if self.encoder.scorer.scoring.subtract_mean else "cosine"
        return self.encoder.scorer.with_scoring(name).scoring

    def _load_gallery(self) -> Gallery:
        dim = self.encoder.config.ecapa.embedding_dim
        with self.database.reading() as connection:
            speakers = connection.execute("SELECT id, name FROM speaker ORDER BY id").fetchall()
            ids = np.array([identity for identity, _ in speakers], np.int64)
            centroids = _make_aligned_zeros(bucket_length(len(ids), SMALLEST_CAPACITY), dim)
            for owners, embeddings in self.database.embeddings(connection, dim):
                rows = np.searchsorted(ids, owners)
                order = np.argsort(rows, kind="stable")
                present, starts = np.unique(rows[order], return_index=True)
                centroids[present] += np.add.reduceat(
                    _normalize(self._subtract_mean(embeddings[order])), starts, axis=0
                )
        for start in range(0, len(ids), 1 << 16):  # in place: a million speakers are 768 MB
            centroids[start : start + (1 << 16)] = _normalize(centroids[start : start + (1 << 16)])
        return Gallery([name for _, name in speakers], jax.device_put(centroids, jax.local_devices()[0]))

    def _subtract_mean(self, embeddings: Float32[np.ndarray, "n embedding"]) -> Float32[np.ndarray, "n embedding"]:
        """Subtracts the mean embedding if the model's scoring does."""
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
    encoder: SpeakerEncoder, sources: Sequence[AudioSource], *, short: Short = "error", any_sound: bool = False
) -> list[Utterance]:
    """Embeds recordings for a store, which is not touched: this is the part of an enrolment that can fail.

    Args:
      encoder: the store's model.
      sources, short: as for `SpeakerEncoder.embed`.
      any_sound: whether recordings without speech are taken, too.

    Raises:
      AudioError: a recording can't be embedded, or holds less than half a second of speech.
      StoreError: no recordings are given.
    """
    if not sources:
        raise StoreError("no recordings given; give one or more")
    waveforms = [_read(encoder, source, short, any_sound) for source in sources]
    return [
        Utterance(name_of(source), compute_digest(waveform), embedding)
        for source, waveform, embedding in zip(sources, waveforms, encoder.embed(waveforms), strict=True)
    ]


def _read(
    encoder: SpeakerEncoder, source: AudioSource, short: Short, any_sound: bool
) -> Float32[np.ndarray, " samples"]:
    waveform = encoder.read(source, short=short)
    if is_silent(waveform):
        raise AudioError(f"{name_of(source)}: has no signal (all samples are equal); give a recording of speech")
    if not any_sound:
        require_speech(waveform, encoder.sample_rate, name_of(source))
    return waveform


def _make_aligned_zeros(n: int, dim: int) -> Float32[np.ndarray, "n embedding"]:
    """Returns zeros at an address that JAX on a CPU uses without a copy, because a gallery can be large."""
    values = np.zeros(n * dim + 16, np.float32)
    start = -values.ctypes.data % 64 // 4
    return values[start : start + n * dim].reshape(n, dim)


def _normalize(rows: Float32[np.ndarray, "n embedding"]) -> Float32[np.ndarray, "n embedding"]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def compute_digest(values: Float32[np.ndarray, " n"]) -> bytes:
    """Returns a hash of an utterance's samples, which distinguishes it from the speaker's other utterances."""
    return hashlib.sha256(values.tobytes()).digest()[:16]
