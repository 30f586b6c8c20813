"""SpeakerEncoder: recordings in, embeddings and decisions out."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Float32

from ecapa_jax.audio.load import AudioSource, LongAudio, is_silent
from ecapa_jax.audio.prefetch import map_ahead
from ecapa_jax.audio.recordings import SilenceWarning as SilenceWarning
from ecapa_jax.audio.recordings import as_list, open_recording, warn_of_no_speech, warn_of_silence
from ecapa_jax.audio.windows import Windows, embed_windows, samples_of
from ecapa_jax.batching import MAX_BATCH_SECONDS, Batch, Blocks, Buckets, minimum_samples
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.config import ModelConfig, ScoringName, Short, Variables, to_dict
from ecapa_jax.folding import fold
from ecapa_jax.runtime.machine import Device, fastest_dtype
from ecapa_jax.runtime.programs import Programs
from ecapa_jax.scoring.config import Cohort, Scoring
from ecapa_jax.scoring.scorer import Scorer, Verification, checked_threshold
from ecapa_jax.vad.gate import holds_speech
from ecapa_jax.vad.silence import cut_silence

Dtype = Literal["float32", "bfloat16", "auto"]
EmbeddedRows: TypeAlias = Iterator[tuple[tuple[int, ...], Float32[np.ndarray, "rows embedding"]]]
"""Positions in a stream, and their embeddings."""


class SpeakerEncoder:
    """A model ready to score: decoding, bucketed batches, one compiled function, decisions.

    Attributes:
      config: front end and network.
      dtype: compute dtype, float32 or bfloat16.
      scorer: from embeddings to scores, with threshold, mean embedding and cohort.
      sample_rate: of the model's waveforms, Hz; other rates are resampled to it.
      minimum_samples: fewest samples of an utterance at that rate.
      devices: over which batches are spread.
      sharding: of a batch's rows.
      buckets: the shapes that are compiled when met.
      programs: the compiled function; `programs.compile_count` says how often it was compiled.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: Variables,
        *,
        scoring: Scoring | None = None,
        embedding_mean: Float[np.ndarray, " embedding"] | None = None,
        cohort: Cohort | None = None,
        devices: Sequence[Device] | None = None,
        dtype: Dtype = "float32",
        programs: Path | None = None,
        announce: bool = False,
    ):
        """Puts the weights on the devices; nothing is compiled yet.

        Args:
          config: front end and network.
          variables: weights and statistics, as from `init` or a bundle.
          scoring, embedding_mean, cohort: how embeddings become scores; a plain cosine without them.
          devices: over which batches are spread; None is all local ones.
          dtype: compute dtype; `auto` is bfloat16 where the device is faster in it.
          programs: the folder where compiled programs are kept for the next process; None keeps none.
          announce: say on stderr, on a terminal, when compiling takes a while.
        """
        self.config = config
        self.scorer = Scorer(scoring or Scoring(), embedding_mean, cohort)
        self.sample_rate, self.minimum_samples = config.fbank.sample_rate, minimum_samples(config)
        self.devices: list[Device] = list(devices or jax.local_devices())
        self.dtype = fastest_dtype(self.devices[0]) if dtype == "auto" else dtype
        self.buckets = Buckets(self.sample_rate, len(self.devices), self.devices[0].platform)
        mesh = Mesh(np.asarray(self.devices), ("data",))
        self.sharding, self._everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
        self.programs = Programs(
            self._embed_batch, json.dumps([to_dict(config), self.dtype]), programs, announce=announce
        )
        self.variables = variables
        self._real_samples = self._padded_samples = 0

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        devices: Sequence[Device] | None = None,
        dtype: Dtype = "float32",
        programs: Path | None = None,
        announce: bool = False,
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
            announce=announce,
        )

    def with_dtype(self, dtype: Dtype) -> SpeakerEncoder:
        """This model computing in another dtype: weights on the device are shared, where they stay the same."""
        return SpeakerEncoder(
            self.config,
            self.variables,
            scoring=self.scorer.scoring,
            embedding_mean=self.scorer.embedding_mean,
            cohort=self.scorer.cohort,
            devices=self.devices,
            dtype=dtype,
            programs=self.programs.folder,
        )

    @property
    def variables(self) -> Variables:
        """Weights and statistics as given, on every device; set them to embed with others."""
        return self._variables

    @variables.setter
    def variables(self, variables: Variables) -> None:
        self._variables = jax.device_put(variables, self._everywhere)
        self._folded = jax.device_put(fold(self.config, self._variables, self.dtype), self._everywhere)
        self.__dict__.pop("fingerprint", None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sha256 over configuration, variables and dtype: equal ones give embeddings that may be compared."""
        digest = hashlib.sha256(json.dumps(to_dict(self.config), sort_keys=True).encode())
        leaves = {
            jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables)
        }
        for name, leaf in sorted(leaves.items()):
            digest.update(f"{name}{leaf.shape}".encode())
            digest.update(np.asarray(leaf, np.float32).tobytes())
        if self.dtype != "float32":
            digest.update(self.dtype.encode())
        return digest.hexdigest()

    @property
    def padding_waste(self) -> float:
        """Share of the samples computed so far that were padding: of length buckets and of rows without a recording."""
        return 1 - self._real_samples / self._padded_samples if self._padded_samples else 0.0

    def embed(
        self,
        sources: AudioSource | Iterable[AudioSource],
        sample_rate: int | str | None = None,
        *,
        short: Short = "error",
        vad: bool = False,
    ) -> Float32[np.ndarray, "n embedding"]:
        """Embeds recordings; each row is what the recording alone would give.

        Args:
          sources: paths, http(s) URLs, bytes, binary files, or arrays [samples] or [samples, channels]; one or many.
            Those longer than `MAX_BATCH_SECONDS` take three times the work and bounded memory: `ecapa_jax.long`.
          sample_rate: of the arrays, Hz; None means the model's.
          short: what to do with an utterance below `minimum_samples`: an error, or repeat it until it is long enough.
          vad: embed only what somebody says, without the silence between; where nobody is heard, a NoSpeechWarning
            says so and all of the recording is embedded.

        Returns:
          [n, embedding_dim] float32, in the order given.

        Raises:
          AudioError: a source can't be read, is too short, or holds NaN; nothing is embedded then.
        """
        recordings = self._read_ahead(sources, sample_rate, short, MAX_BATCH_SECONDS, vad=vad)
        return self._in_order(self.embed_stream(audio for audio, _ in recordings))

    def embed_windows(
        self,
        source: AudioSource,
        window: float = 3.0,
        hop: float | None = None,
        sample_rate: int | str | None = None,
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
        sample_rate: int | str | None = None,
        *,
        short: Short = "error",
        scorer: Scorer | None = None,
    ) -> Float32[np.ndarray, "n views embedding"]:
        """The embeddings that `Scorer.score` takes of each recording: first the whole's, then those of its windows.

        Args:
          sources, sample_rate, short: as for `embed`.
          scorer: None is the model's.
        """
        scorer = scorer or self.scorer
        waveforms, _ = self._read_whole(sources, sample_rate, short)
        rows = self._in_order(self.embed_stream(self._views(waveforms, scorer)))
        return rows.reshape(len(waveforms), scorer.n_views, -1)

    def _views(self, waveforms: Sequence[np.ndarray], scorer: Scorer) -> list[Float32[np.ndarray, " _"]]:
        """The views of all recordings; the kept programs that they need are read meanwhile."""
        views = [view for waveform in waveforms for view in scorer.views(waveform)]
        batches = self.buckets.plan([len(view) for view in views if not self.buckets.is_long(len(view))])
        self.programs.fetch(self._arguments(batch) for batch in batches)
        return views

    def _read_ahead(
        self,
        sources: AudioSource | Iterable[AudioSource],
        sample_rate: int | str | None,
        short: Short,
        longest: float = math.inf,
        *,
        vad: bool = False,
        listen: bool = False,
    ) -> Iterator[tuple[Float32[np.ndarray, " _"] | LongAudio, bool]]:
        """The recordings in order, decoded by threads while the device is busy with those before.

        With each comes whether somebody is heard to speak in it; True where neither `vad` nor `listen` asks for that.
        What is longer than `longest` seconds is left to whoever takes it, who reads it before he takes the next.
        """

        def read(source: AudioSource) -> tuple[Float32[np.ndarray, " _"] | LongAudio, bool]:
            audio = open_recording(self.config, source, sample_rate, short, longest)
            speech = self._without_silence(audio) if vad else audio
            heard = speech is not None
            if heard and listen and not isinstance(audio, LongAudio):
                heard = holds_speech(audio, self.sample_rate)
            return audio if speech is None else speech, heard

        listed = as_list(sources)
        with contextlib.closing(map_ahead(read, listed)) as recordings:
            for source, (audio, heard) in zip(listed, recordings, strict=True):
                yield audio, heard
                warn_of_silence(source, audio)  # of which a stream knows at its end
                if not heard and not (audio.is_silent if isinstance(audio, LongAudio) else is_silent(audio)):
                    warn_of_no_speech(source)

    def _without_silence(
        self, audio: Float32[np.ndarray, " _"] | LongAudio
    ) -> Float32[np.ndarray, " _"] | LongAudio | None:
        """What somebody says in a recording; None where that is nothing, or too little for the model."""
        speech = cut_silence(audio, self.sample_rate)
        if isinstance(speech, np.ndarray) and len(speech) < self.minimum_samples:
            return None
        return speech

    def _read_whole(
        self,
        sources: AudioSource | Iterable[AudioSource],
        sample_rate: int | str | None,
        short: Short,
        *,
        vad: bool = False,
        listen: bool = False,
    ) -> tuple[list[Float32[np.ndarray, " _"]], list[bool]]:
        """The recordings, and whether somebody is heard to speak in each."""
        found = list(self._read_ahead(sources, sample_rate, short, vad=vad, listen=listen))
        return cast("list[np.ndarray]", [audio for audio, _ in found]), [heard for _, heard in found]

    def _in_order(self, embedded: EmbeddedRows) -> Float32[np.ndarray, "n embedding"]:
        rows: dict[int, np.ndarray] = {}
        for indices, embeddings in embedded:
            rows.update(zip(indices, embeddings, strict=True))
        if not rows:
            return np.empty((0, self.config.ecapa.embedding_dim), np.float32)
        return np.stack([rows[index] for index in range(len(rows))])

    def read(
        self, source: AudioSource, sample_rate: int | str | None = None, *, short: Short = "error", vad: bool = False
    ) -> Float32[np.ndarray, " samples"]:
        """One recording as the model takes it: one channel at its rate, at least `minimum_samples` long.

        Args:
          source, sample_rate, short, vad: as for `embed`.

        Raises:
          AudioError: the source can't be read, is too short, or holds NaN.
        """
        waveform = open_recording(self.config, source, sample_rate, short)
        speech = self._without_silence(waveform) if vad else waveform
        if speech is None:
            warn_of_no_speech(source)
            speech = waveform
        assert not isinstance(speech, LongAudio)
        return speech

    def embed_stream(self, waveforms: Iterable[Float32[np.ndarray, " _"] | LongAudio]) -> EmbeddedRows:
        """Embeds waveforms while they come in; memory holds one unfinished batch a length bucket, however many come.

        Args:
          waveforms: as `read` gives them; long ones go chunk by chunk.

        Returns:
          An iterator over positions in the stream and their embeddings, batch after batch, every position once. Which
          waveforms share a batch follows from their order and lengths alone: the same stream gives the same bits.
        """
        running: collections.deque[tuple[tuple[int, ...], jax.Array | np.ndarray]] = collections.deque()
        for batch, rows in self.buckets.stream(waveforms):
            embeddings = self._dispatch(batch, rows) if batch.samples else self._embed_long(rows[0])
            running.append((batch.indices, embeddings))
            if len(running) > 1:  # one computes while the next is read
                yield _on_host(*running.popleft())
        for done in running:
            yield _on_host(*done)

    def _dispatch(self, batch: Batch, waveforms: Sequence[np.ndarray]) -> Float32[jax.Array, "rows embedding"]:
        """Embeds one batch, without waiting for the device."""
        padded = np.zeros((batch.rows, batch.samples), np.float32)
        lengths = np.zeros(batch.rows, np.int32)
        for row, waveform in enumerate(waveforms):
            padded[row, : len(waveform)] = waveform
            lengths[row] = len(waveform)
        self._real_samples += int(lengths.sum())
        self._padded_samples += padded.size
        return self.programs(self._folded, *jax.device_put((padded, lengths), self.sharding))

    def _arguments(self, batch: Batch) -> tuple[Variables, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """What `_dispatch` calls the compiled function with; of the waveforms the shapes."""
        waveforms = jax.ShapeDtypeStruct((batch.rows, batch.samples), np.float32, sharding=self.sharding)
        lengths = jax.ShapeDtypeStruct((batch.rows,), np.int32, sharding=self.sharding)
        return self._folded, waveforms, lengths

    def _embed_batch(self, variables: Variables, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
        """The function that is compiled: on a processor, as many utterances at a time as its caches hold."""
        from ecapa_jax.functional import embed, embed_in_groups  # flax, which programs of an earlier process don't need

        rows = self.buckets.group(*waveforms.shape)
        if rows == len(waveforms):
            return embed(self.config, variables, waveforms, lengths)
        return embed_in_groups(self.config, variables, waveforms, lengths, rows)

    def _embed_long(self, blocks: Blocks) -> Float32[np.ndarray, "1 embedding"]:
        """Embeds what is too long for a batch, chunk by chunk."""
        from ecapa_jax.long import passes

        place = functools.partial(jax.device_put, device=self.sharding)
        return passes.embed(self.config, self._folded, blocks, rows=self.buckets.n_devices, place=place)[None]

    def verify(
        self,
        a: AudioSource,
        b: AudioSource,
        threshold: float | None = None,
        *,
        short: Short = "error",
        scoring: ScoringName = "publisher",
        vad: bool = False,
    ) -> Verification:
        """Scores two recordings and, with a threshold, decides whether one speaker made both.

        A NoSpeechWarning names a recording with less than half a second of speech; `Verification.speech` says so, too.

        Args:
          a, b: recordings, as for `embed`; arrays are at the model's rate.
          threshold: on the scale of the score, `Verification.score_type`; None takes the model's, if it has one.
          short: as for `embed`.
          scoring: the model's (`publisher`), or another one; its threshold is the model's where that still fits.
          vad: as for `embed`.

        Raises:
          AudioError: a recording can't be embedded.
          ConfigError: the threshold is out of the score's range, or the scoring needs what the model does not bring.
        """
        scorer = self.scorer.named(scoring)
        threshold = scorer.scoring.threshold if threshold is None else checked_threshold(threshold, scorer.scoring)
        waveforms, heard = self._read_whole([a, b], None, short, vad=vad, listen=True)
        seconds = [len(waveform) / self.sample_rate for waveform in waveforms]
        rows = self._in_order(self.embed_stream(self._views(waveforms, scorer)))
        first, second = rows.reshape(2, scorer.n_views, -1)
        score = scorer.score(first, second, seconds)
        same_speaker = None if threshold is None else score >= threshold
        return Verification(score, same_speaker, threshold, scorer.scoring.score_type, (heard[0], heard[1]))

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
            self._dispatch(batch, []).block_until_ready()
        return len(batches)


def _on_host(
    indices: tuple[int, ...], embeddings: jax.Array | np.ndarray
) -> tuple[tuple[int, ...], Float32[np.ndarray, "rows embedding"]]:
    """The embeddings on the host, without those of rows that only fill the batch."""
    return indices, np.asarray(embeddings)[: len(indices)]
