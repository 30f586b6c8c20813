"""SpeakerEncoder: recordings in, embeddings and decisions out."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import jax
import numpy as np
from jaxtyping import Float, Float32

from ecapa_jax.audio.load import AudioSource, LongAudio
from ecapa_jax.audio.prefetch import map_ahead
from ecapa_jax.audio.recordings import Short as Short
from ecapa_jax.audio.recordings import SilenceWarning as SilenceWarning
from ecapa_jax.audio.recordings import as_list, open_recording, warn_of_silence
from ecapa_jax.audio.windows import Windows, embed_windows, samples_of
from ecapa_jax.batching import MAX_BATCH_SECONDS, Buckets, minimum_samples
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.config import ModelConfig, Variables
from ecapa_jax.embedder import Dtype as Dtype
from ecapa_jax.embedder import Embedder
from ecapa_jax.scoring.config import Cohort, Scoring
from ecapa_jax.scoring.scorer import Scorer, ScoringName, Verification, checked_threshold


class SpeakerEncoder:
    """A model ready to score: decoding, bucketed batches, one compiled function, decisions.

    Attributes:
      scorer: from embeddings to scores.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: Variables,
        *,
        scoring: Scoring | None = None,
        embedding_mean: Float[np.ndarray, " embedding"] | None = None,
        cohort: Cohort | None = None,
        devices: Sequence[jax.Device] | None = None,
        dtype: Dtype = "float32",
        programs: Path | None = None,
    ):
        self._embedder = Embedder(config, variables, devices, dtype, programs)
        self._programs = programs
        self.scorer = Scorer(scoring or Scoring(), embedding_mean, cohort)

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        devices: Sequence[jax.Device] | None = None,
        dtype: Dtype = "float32",
        programs: Path | None = None,
    ) -> SpeakerEncoder:
        """The encoder of a bundle, with its scoring."""
        return cls(
            bundle.config,
            bundle.variables,
            scoring=bundle.scoring,
            embedding_mean=bundle.embedding_mean,
            cohort=bundle.cohort,
            devices=devices,
            dtype=dtype,
            programs=programs,
        )

    def with_dtype(self, dtype: Dtype) -> SpeakerEncoder:
        """This model computing in another dtype: weights on the device are shared, where they stay the same."""
        return SpeakerEncoder(
            self.config,
            self.variables,
            scoring=self.scoring,
            embedding_mean=self.embedding_mean,
            cohort=self.scorer.cohort,
            devices=self._embedder.devices,
            dtype=dtype,
            programs=self._programs,
        )

    @property
    def config(self) -> ModelConfig:
        """Front end and network."""
        return self._embedder.config

    @property
    def dtype(self) -> str:
        """Compute dtype, float32 or bfloat16."""
        return self._embedder.dtype

    @property
    def buckets(self) -> Buckets:
        """The shapes that are compiled when met."""
        return self._embedder.buckets

    @property
    def variables(self) -> Variables:
        """Weights and statistics as given, on every device; set them to embed with others."""
        return self._embedder.variables

    @variables.setter
    def variables(self, variables: Variables) -> None:
        self._embedder.variables = variables

    @property
    def scoring(self) -> Scoring:
        """Threshold and way of scoring."""
        return self.scorer.scoring

    @property
    def embedding_mean(self) -> Float[np.ndarray, " embedding"] | None:
        """Mean embedding of a training set, where the model brings one."""
        return self.scorer.embedding_mean

    @property
    def compile_count(self) -> int:
        """Compilations so far; programs of an earlier process are not among them."""
        return self._embedder.programs.compile_count

    @property
    def fingerprint(self) -> str:
        """Sha256 over configuration, variables and dtype: equal ones give embeddings that may be compared."""
        return self._embedder.fingerprint

    @property
    def sample_rate(self) -> int:
        """Rate of the model's waveforms, Hz; other rates are resampled to it."""
        return self.config.fbank.sample_rate

    @property
    def minimum_samples(self) -> int:
        """Fewest samples of an utterance at the model's rate."""
        return minimum_samples(self.config)

    def embed(
        self, sources: AudioSource | Iterable[AudioSource], sample_rate: int | None = None, *, short: Short = "error"
    ) -> Float32[np.ndarray, "n embedding"]:
        """Embeds recordings; each row is what the recording alone would give.

        Args:
          sources: paths, http(s) URLs, bytes, binary files, or arrays [samples] or [samples, channels]; one or many.
            Those longer than `MAX_BATCH_SECONDS` take three times the work and bounded memory: `ecapa_jax.long`.
          sample_rate: of the arrays, Hz; None means the model's.
          short: what to do with an utterance below `minimum_samples`: an error, or repeat it until it is long enough.

        Returns:
          [n, embedding_dim] float32, in the order given.

        Raises:
          AudioError: a source can't be read, is too short, or holds NaN; nothing is embedded then.
        """
        return self._embed_waveforms(self._read_ahead(sources, sample_rate, short, MAX_BATCH_SECONDS))

    def embed_windows(
        self,
        source: AudioSource,
        window: float = 3.0,
        hop: float | None = None,
        sample_rate: int | None = None,
        *,
        short: Short = "error",
    ) -> Windows:
        """Embeds a recording window by window; of a file, memory holds what a batch of windows needs.

        Windows begin every `hop` seconds; if something is left after the last whole one, one more ends with the
        recording. A recording shorter than a window is one.

        Args:
          source, sample_rate, short: as for `embed`, one recording.
          window, hop: seconds; the hop is half a window where none is given.

        Raises:
          AudioError: as `embed`.
          ConfigError: the window is too short for the model, or the hop longer than it.
        """
        hop = window / 2 if hop is None else hop
        size, step = samples_of(window, hop, self.sample_rate, self.minimum_samples)
        audio = open_recording(self.config, source, sample_rate, short, MAX_BATCH_SECONDS)
        blocks = audio if isinstance(audio, LongAudio) else [audio]
        found = embed_windows(self.embed_stream, blocks, size, step, self.sample_rate)
        warn_of_silence(source, audio)
        return found

    def embed_views(
        self,
        sources: AudioSource | Iterable[AudioSource],
        sample_rate: int | None = None,
        *,
        short: Short = "error",
        scorer: Scorer | None = None,
    ) -> Float32[np.ndarray, "n views embedding"]:
        """The embeddings that `Scorer.score` takes of each recording: first the whole's, then those of its windows.

        Args:
          sources, sample_rate, short: as for `embed`.
          scorer: None is the model's.
        """
        return self._embed_views(self._read_whole(sources, sample_rate, short), scorer or self.scorer)

    def _embed_views(self, waveforms: Sequence[np.ndarray], scorer: Scorer) -> Float32[np.ndarray, "n views embedding"]:
        views = [view for waveform in waveforms for view in scorer.views(waveform)]
        self._embedder.fetch([len(view) for view in views if not self.buckets.is_long(len(view))])
        rows = self._embed_waveforms(views)
        return rows.reshape(len(waveforms), scorer.n_views, -1)

    def _read_ahead(
        self,
        sources: AudioSource | Iterable[AudioSource],
        sample_rate: int | None,
        short: Short,
        longest: float = math.inf,
    ) -> Iterator[Float32[np.ndarray, " _"] | LongAudio]:
        """The recordings in order, decoded by threads while the device is busy with those before.

        What is longer than `longest` seconds is left to whoever takes it, who reads it before he takes the next.
        """
        listed = as_list(sources)
        read = functools.partial(open_recording, self.config, sample_rate=sample_rate, short=short, longest=longest)
        with contextlib.closing(map_ahead(read, listed)) as recordings:
            for source, audio in zip(listed, recordings, strict=True):
                yield audio
                warn_of_silence(source, audio)  # of which a stream knows at its end

    def _read_whole(
        self, sources: AudioSource | Iterable[AudioSource], sample_rate: int | None, short: Short
    ) -> list[Float32[np.ndarray, " _"]]:
        return cast("list[np.ndarray]", list(self._read_ahead(sources, sample_rate, short)))

    def _embed_waveforms(self, waveforms: Iterable[np.ndarray | LongAudio]) -> Float32[np.ndarray, "n embedding"]:
        rows: dict[int, np.ndarray] = {}
        for indices, embeddings in self.embed_stream(waveforms):
            rows.update(zip(indices, embeddings, strict=True))
        if not rows:
            return np.empty((0, self.config.ecapa.embedding_dim), np.float32)
        return np.stack([rows[index] for index in range(len(rows))])

    def read(
        self, source: AudioSource, sample_rate: int | None = None, *, short: Short = "error"
    ) -> Float32[np.ndarray, " samples"]:
        """One recording as the model takes it: one channel at its rate, at least `minimum_samples` long.

        Args:
          source, sample_rate, short: as for `embed`.

        Raises:
          AudioError: the source can't be read, is too short, or holds NaN.
        """
        waveform = open_recording(self.config, source, sample_rate, short)
        assert not isinstance(waveform, LongAudio)
        return waveform

    def embed_stream(
        self, waveforms: Iterable[Float32[np.ndarray, " _"] | LongAudio]
    ) -> Iterator[tuple[tuple[int, ...], Float32[np.ndarray, "rows embedding"]]]:
        """Embeds waveforms while they come in; memory holds one unfinished batch a length bucket, however many come.

        Args:
          waveforms: as `read` gives them; long ones go chunk by chunk.

        Returns:
          An iterator over positions in the stream and their embeddings, batch after batch, every position once. Which
          waveforms share a batch follows from their order and lengths alone: the same stream gives the same bits.
        """
        return self._embedder.stream(waveforms)

    def verify(
        self,
        a: AudioSource,
        b: AudioSource,
        threshold: float | None = None,
        *,
        short: Short = "error",
        scoring: ScoringName = "publisher",
    ) -> Verification:
        """Scores two recordings and, with a threshold, decides whether one speaker made both.

        Args:
          a, b: recordings, as for `embed`; arrays are at the model's rate.
          threshold: on the scale of the score, `Verification.score_type`; None takes the model's, if it has one.
          short: as for `embed`.
          scoring: the model's (`publisher`), or another one; its threshold is the model's where that still fits.

        Raises:
          AudioError: a recording can't be embedded.
          ConfigError: the threshold is out of the score's range, or the scoring needs what the model does not bring.
        """
        scorer = self.scorer.named(scoring)
        threshold = scorer.scoring.threshold if threshold is None else checked_threshold(threshold, scorer.scoring)
        waveforms = self._read_whole([a, b], None, short)
        seconds = [len(waveform) / self.sample_rate for waveform in waveforms]
        views = self._embed_views(waveforms, scorer)
        score = scorer.score(views[0], views[1], seconds)
        same_speaker = None if threshold is None else score >= threshold
        return Verification(score, same_speaker, threshold, scorer.scoring.score_type)

    def score(
        self,
        a: Float[np.ndarray, "*views embedding"],
        b: Float[np.ndarray, "*views embedding"],
        seconds: Sequence[float] | None = None,
    ) -> float:
        """`Scorer.score` of two recordings from their embeddings, or their views' as `embed_views` gives them."""
        return self.scorer.score(np.atleast_2d(a), np.atleast_2d(b), seconds)

    def warm_up(self, max_seconds: float) -> int:
        """Compiles every bucket that utterances up to `max_seconds` can meet; returns how many there are."""
        batches = self.buckets.up_to(int(max_seconds * self.sample_rate))
        for batch in batches:
            self._embedder.dispatch(batch, []).block_until_ready()
        return len(batches)

    @property
    def padding_waste(self) -> float:
        """Share of the samples computed so far that were padding: of length buckets and of rows without a recording."""
        return self._embedder.padding_waste
