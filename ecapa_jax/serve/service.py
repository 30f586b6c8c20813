"""The service without HTTP: takes recordings as bytes and returns answers."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import io
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import jax
import numpy as np
from jaxtyping import Float32

from ecapa_jax.audio.load import is_silent, load_audio
from ecapa_jax.diarization.diarize import diarize
from ecapa_jax.diarization.names import link_speakers
from ecapa_jax.diarization.result import Diarization
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import AudioError, ConfigError, StoreError
from ecapa_jax.identify.database import Speaker, Utterance, check_name
from ecapa_jax.identify.store import Enrolment, Identification, SpeakerStore, compute_digest
from ecapa_jax.scoring.scorer import Verification, check_threshold
from ecapa_jax.serve.batcher import Batcher
from ecapa_jax.serve.fetch import fetch_public
from ecapa_jax.serve.picture import Painter, Picture
from ecapa_jax.serve.settings import Settings
from ecapa_jax.vad.gate import explain_no_speech, holds_speech

T = TypeVar("T")
Waveform = Float32[np.ndarray, " samples"]

_LONGEST_NAME = 80


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording in a request: the content and name of a file, or an address."""

    name: str
    content: bytes = b""
    url: str = ""


class _Named(io.BytesIO):
    """Bytes with a name for messages."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


class Service:
    """A model, its batcher, and optionally the store of enrolled speakers.

    Attributes:
      encoder, name: the model and its name.
      points: the model's operating points.
      fingerprint: models with equal fingerprints give embeddings that can be compared.
    """

    def __init__(
        self,
        encoder: SpeakerEncoder,
        settings: Settings,
        *,
        name: str = "default",
        points: Sequence[dict[str, Any]] = (),
        store: SpeakerStore | None = None,
    ):
        self.encoder = encoder
        self.settings = settings
        self.name = name
        self.points = list(points)
        self.store = store
        self.batcher = Batcher(encoder)
        self.fingerprint = encoder.fingerprint  # hashes every weight, so it is done before requests arrive
        self._painter = Painter(encoder)
        self._painting = threading.Lock()  # one picture at a time leaves the processor to embeddings
        self._decoding: anyio.CapacityLimiter | None = None
        self._storing: anyio.CapacityLimiter | None = None
        self._diarizing: anyio.CapacityLimiter | None = None

    @property
    def minimum_seconds(self) -> float:
        """The shortest recording that the model accepts."""
        return self.encoder.minimum_samples / self.encoder.sample_rate

    async def read(self, recording: Recording) -> Waveform:
        """Returns the waveform of a recording, in the form of `SpeakerEncoder.read`.

        Raises:
          AudioError: the recording is not audio, too short, too long, silent or damaged.
          DownloadError: its address can't be fetched.
        """
        if self._decoding is None:
            self._decoding = anyio.CapacityLimiter(os.cpu_count() or 1)
        if recording.url:
            content = await anyio.to_thread.run_sync(self._fetch, recording.url)
            recording = dataclasses.replace(recording, content=content, url="")
        return await anyio.to_thread.run_sync(self._decode, recording, limiter=self._decoding)

    async def hear(self, waveforms: Sequence[Waveform]) -> list[bool]:
        """Returns for each waveform whether somebody speaks in it."""
        rate = self.encoder.sample_rate
        return [
            await anyio.to_thread.run_sync(holds_speech, waveform, rate, limiter=self._decoding)
            for waveform in waveforms
        ]

    async def embed_views(self, waveforms: Sequence[Waveform]) -> Float32[np.ndarray, "n views embedding"]:
        """Does what `SpeakerEncoder.embed_views` does, in batches shared with other requests."""
        views = [view for waveform in waveforms for view in self.encoder.scorer.views(waveform)]
        rows = await asyncio.gather(*map(self.batcher.embed, views))
        return np.stack(rows).reshape(len(waveforms), self.encoder.scorer.n_views, -1)

    async def embed(
        self, recordings: Sequence[Recording], *, speech: bool = False
    ) -> tuple[list[Waveform], Float32[np.ndarray, "n embedding"]]:
        """Returns the waveforms and the embeddings of recordings.

        Args:
          recordings: of a request.
          speech: refuse those in which nobody speaks, unless the service takes any sound.

        Raises:
          AudioError: nobody speaks in a recording, or as for `read`.
          DownloadError: as for `read`.
        """
        waveforms = [await self.read(recording) for recording in recordings]
        if speech and not self.settings.any_sound:
            for recording, heard in zip(recordings, await self.hear(waveforms), strict=True):
                if not heard:
                    raise AudioError(explain_no_speech(recording.name))
        return waveforms, np.stack(await asyncio.gather(*map(self.batcher.embed, waveforms)))

    async def verify(self, a: Recording, b: Recording, threshold: float | None) -> tuple[Verification, list[float]]:
        """Scores two recordings; returns the answer and the lengths of both in seconds.

        Raises:
          ConfigError: the threshold is out of the score's range.
        """
        scorer = self.encoder.scorer
        threshold = scorer.scoring.threshold if threshold is None else check_threshold(threshold, scorer.scoring)
        waveforms = [await self.read(a), await self.read(b)]
        seconds = [len(waveform) / self.encoder.sample_rate for waveform in waveforms]
        heard = await self.hear(waveforms)
        views = await self.embed_views(waveforms)
        score = await anyio.to_thread.run_sync(scorer.score, views[0], views[1], seconds)
        same_speaker = None if threshold is None else score >= threshold
        answer = Verification(score, same_speaker, threshold, scorer.scoring.score_type, (heard[0], heard[1]))
        return answer, seconds

    async def picture(self, recording: Recording) -> tuple[Picture, float]:
        """Returns the data of the page's pictures, and the recording's length in seconds."""
        waveform = await self.read(recording)
        picture = await anyio.to_thread.run_sync(self._paint, waveform)
        return picture, len(waveform) / self.encoder.sample_rate

    async def diarize(
        self,
        recording: Recording,
        speakers: int | None,
        *,
        min_speakers: int,
        max_speakers: int,
        threshold: float | None,
    ) -> Diarization:
        """Does what `ecapa_jax.diarize` does, one recording at a time; names enrolled speakers if there is a store.

        Raises:
          AudioError: as for `read`.
          ConfigError: the numbers of speakers contradict each other, or the threshold lies outside [-1, 1].
        """
        threshold = None if threshold is None else check_threshold(threshold)
        if self._diarizing is None:
            self._diarizing = anyio.CapacityLimiter(1)
        waveform = await self.read(recording)
        search = functools.partial(
            diarize, self.encoder, waveform, speakers, min_speakers=min_speakers, max_speakers=max_speakers
        )
        result = await anyio.to_thread.run_sync(search, limiter=self._diarizing)
        store = self.store
        if store is None or (threshold is None and store.threshold is None):
            return result
        return await self._run_with_store(lambda: link_speakers(result, store, threshold))

    async def enroll(self, store: SpeakerStore, name: str, recordings: Sequence[Recording]) -> Enrolment:
        """Does what `SpeakerStore.enroll` does, in shared batches."""
        try:
            name = check_name(name)
        except StoreError as error:  # other errors of the store name files, which clients should not see
            raise ConfigError(str(error)) from error
        waveforms, rows = await self.embed(recordings, speech=True)
        utterances = [
            Utterance(recording.name, compute_digest(waveform), row)
            for recording, waveform, row in zip(recordings, waveforms, rows, strict=True)
        ]
        added = await self._run_with_store(lambda: store.database.enroll(name, utterances))
        return Enrolment(name, added, len(utterances) - added)

    async def identify(
        self, store: SpeakerStore, recording: Recording, *, top: int, threshold: float | None
    ) -> Identification:
        """Does what `SpeakerStore.identify` does, in shared batches."""
        threshold = None if threshold is None else check_threshold(threshold)
        _, rows = await self.embed([recording], speech=True)
        return await self._run_with_store(lambda: store.identify_embedding(rows[0], top=top, threshold=threshold))

    async def speakers(self, store: SpeakerStore) -> list[Speaker]:
        """Returns all enrolled speakers."""
        return await self._run_with_store(store.speakers)

    async def remove(self, store: SpeakerStore, name: str) -> int:
        """Does what `SpeakerStore.remove` does."""
        return await self._run_with_store(lambda: store.remove(name))

    def warm_up(self, max_seconds: float) -> int:
        """Compiles all programs for recordings up to `max_seconds`; returns the number of the encoder's programs."""
        count = self.encoder.warm_up(max_seconds)
        length = self.encoder.minimum_samples
        while length <= max_seconds * self.encoder.sample_rate:
            self._paint(np.zeros(length, np.float32))
            length += length // 8 + 1  # leaves out no bucket, because there are four to each doubling
        score = np.ones((self.encoder.scorer.n_views, self.encoder.config.ecapa.embedding_dim), np.float32)
        self.encoder.score(score, score, [1.0, 1.0])
        diarize(self.encoder, np.zeros(self.encoder.sample_rate, np.float32))
        return count

    def parameters(self) -> int:
        """Returns the number of weights in the model."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.encoder.variables["params"]))

    def close(self) -> None:
        """Ends the batcher and closes the store."""
        self.batcher.close()
        if self.store is not None:
            self.store.close()

    async def _run_with_store(self, action: Callable[[], T]) -> T:
        if self._storing is None:
            self._storing = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(action, limiter=self._storing)

    def _fetch(self, url: str) -> bytes:
        return fetch_public(url, max_bytes=self.settings.max_bytes, seconds=self.settings.body_seconds)

    def _paint(self, waveform: Waveform) -> Picture:
        with self._painting:
            return self._painter.picture(waveform)

    def _decode(self, recording: Recording) -> Waveform:
        rate, name = self.encoder.sample_rate, recording.name
        waveform = load_audio(
            _Named(recording.content, name),
            sample_rate=None,
            target_rate=rate,
            channel=self.encoder.config.fbank.channel,
            max_seconds=self.settings.max_seconds,
        )
        if len(waveform) < self.encoder.minimum_samples:
            raise AudioError(
                f"{name}: is too short: {1000 * len(waveform) / rate:.0f} ms, this model needs "
                f"{1000 * self.minimum_seconds:.0f} ms; record more"
            )
        if is_silent(waveform):
            raise AudioError(f"{name}: is silent (all samples are equal); give a recording of speech")
        return waveform


def clean_name(name: str | None, otherwise: str) -> str:
    """Returns the name of an uploaded file without its folder and without unprintable characters."""
    base = (name or "").replace("\\", "/").rpartition("/")[2]
    printable = "".join(character for character in base if character.isprintable()).strip()
    return printable[:_LONGEST_NAME] or otherwise
