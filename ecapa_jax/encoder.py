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
from typing import Any, Literal, TypeAlias, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Float32

from ecapa_jax.audio.decoding import Channel
from ecapa_jax.audio.load import AudioSource, LongAudio, is_silent
from ecapa_jax.audio.prefetch import map_ahead
from ecapa_jax.audio.recordings import SilenceWarning as SilenceWarning
from ecapa_jax.audio.recordings import as_list, open_recording, warn_of_no_speech, warn_of_silence
from ecapa_jax.audio.windows import Windows, embed_windows, samples_of
from ecapa_jax.batching import MAX_BATCH_SECONDS, Batch, Blocks, Buckets, minimum_samples
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.config import ModelConfig, ScoringName, Short, Variables, to_dict
from ecapa_jax.folding import fold
from ecapa_jax.modes import in_library_modes
from ecapa_jax.runtime.machine import Device, check_not_forked, fastest_dtype, find_devices
from ecapa_jax.runtime.programs import Programs
from ecapa_jax.scoring.config import Cohort, Scoring
from ecapa_jax.scoring.scorer import Scorer, Verification, check_threshold
from ecapa_jax.vad.gate import holds_speech
from ecapa_jax.vad.silence import cut_silence

Dtype = Literal["float32", "bfloat16", "auto"]
EmbeddedRows: TypeAlias = Iterator[tuple[tuple[int, ...], Float32[np.ndarray, "rows embedding"]]]
"""Positions in a stream, and their embeddings."""


class SpeakerEncoder:
    """A model that is ready to score: it decodes recordings, embeds them in batches, and decides.

    Attributes:
      config: front end and network.
      dtype: compute dtype, float32 or bfloat16.
      scorer: turns embeddings into scores; holds the threshold, the mean embedding and the cohort.
      sample_rate: rate of the waveforms that the model takes, Hz; recordings of other rates are resampled to it.
      minimum_samples: fewest samples, at that rate, that an utterance may have.
      devices: devices over which each batch is spread.
      sharding: how the rows of a batch are spread over the devices.
      buckets: the batch shapes; a shape is compiled when the first batch has it.
      channel: the channel of recordings with several, if it is not the one that the model takes.
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
          devices: devices over which each batch is spread; None takes all local devices.
          dtype: compute dtype; `auto` is bfloat16 where the device is faster in it, otherwise float32.
          programs: the folder where compiled programs are kept for the next process; None keeps no programs.
          announce: whether to say on stderr, if it is a terminal, that compiling takes a while.
        """
        self.config = config
        self.scorer = Scorer(scoring or Scoring(), embedding_mean, cohort)
        self.sample_rate, self.minimum_samples = config.fbank.sample_rate, minimum_samples(config)
        check_not_forked()
        self.channel: Channel | None = None
        self.devices: list[Device] = list(devices or find_devices())
        self.dtype = fastest_dtype(self.devices[0]) if dtype == "auto" else dtype
        self.buckets = Buckets(self.sample_rate, len(self.devices), self.devices[0].platform)
        mesh = Mesh(np.asarray(self.devices), ("data",))
        self.sharding, self._replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
        self.programs = Programs(
            self._embed_batch, json.dumps([to_dict(config), self.dtype]), programs, announce=announce
        )
        self.variables = variables
        self._real_samples = self._padded_samples = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles configuration, weights, scoring and dtype; what is unpickled runs on the local devices."""
        variables = jax.tree.map(np.asarray, self.variables)
        scorer = self.scorer
        parts = (self.config, variables, scorer.scoring, scorer.embedding_mean, scorer.cohort, self.dtype)
        return _unpickle, (*parts, self.programs.folder)

    def __copy__(self) -> SpeakerEncoder:
        """Returns an encoder that shares weights and compiled programs with this one."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

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
        """Makes the encoder of a bundle, with the bundle's scoring."""
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
        """Returns an encoder of the same model in another dtype. Both share the weights whose dtype is the same."""
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
        """Weights and statistics on every device, in at most float32. Assign to this property to replace them."""
        return self._variables

    @variables.setter
    @in_library_modes
    def variables(self, variables: Variables) -> None:
        narrow = jax.tree.map(lambda leaf: np.float32(leaf) if leaf.dtype == np.float64 else leaf, variables)
        self._variables = jax.device_put(narrow, self._replicated)
        self._folded = jax.device_put(fold(self.config, self._variables, self.dtype), self._replicated)
        self.__dict__.pop("fingerprint", None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of configuration, variables and dtype. Embeddings may be compared if their fingerprints are equal."""
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
        """Share of padding among the samples computed so far: it fills up lengths, and rows without a recording."""
        return 1 - self._real_samples / self._padded_samples if self._padded_samples else 0.0

    def embed(
        self,
        sources: AudioSource | Iterable[AudioSource],
        sample_rate: int | str | None = None,
        *,
        short: Short = "error",
        vad: bool = False,
        channel: Channel | None = None,
    ) -> Float32[np.ndarray, "n embedding"]:
        """Embeds recordings. A recording has the same embedding alone and beside others.

        Args:
          sources: one recording or several: paths, http(s) URLs, bytes, binary files, or arrays [samples] or
            [samples, channels]. Recordings longer than `MAX_BATCH_SECONDS` are embedded chunk by chunk, which takes
            three times the work but bounded memory (see `ecapa_jax.long`).
          sample_rate: sample rate of the arrays, Hz; None means the rate of the model.
          short: what to do with a recording of fewer than `minimum_samples`: raise an error, or repeat it until it is
            long enough.
          vad: whether to embed only the speech and leave out the silence. If nobody is heard in a recording, a
            NoSpeechWarning says so and the whole recording is embedded.
          channel: the channel of recordings with several: `left`, `right`, `mean` of all, or an index from 0; None
            means `self.channel`.

        Returns:
          [n, embedding_dim] float32, in the order of `sources`.

        Raises:
          AudioError: a source can't be read, is too short, or holds NaN. In this case nothing is embedded.
        """
        recordings = self._read_ahead(sources, sample_rate, short, MAX_BATCH_SECONDS, vad=vad, channel=channel)
        return self._stack_in_order(self.embed_stream(audio for audio, _ in recordings))

    def embed_windows(
        self,
        source: AudioSource,
        window: float = 3.0,
        hop: float | None = None,
        sample_rate: int | str | None = None,
        *,
        short: Short = "error",
    ) -> Windows:
        """Embeds a recording window by window. A file is read as it is needed: memory holds one batch of windows.

        A window begins every `hop` seconds. If audio is left after the last whole window, one more window is added
        that ends where the recording ends. A recording shorter than a window makes one window.

        Args:
          source, sample_rate, short: as for `embed`, but one recording.
          window: length of a window in seconds.
          hop: seconds from the start of one window to the start of the next; None is half a window.

        Raises:
          AudioError: as `embed`.
          ConfigError: the window is too short for the model, or the hop is longer than the window.
        """
        hop = window / 2 if hop is None else hop
        size, step = samples_of(window, hop, self.sample_rate, self.minimum_samples)
        audio = open_recording(self.config, source, sample_rate, short, MAX_BATCH_SECONDS, self.channel)
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
        """Embeds the views of each recording that `Scorer.score` needs: the whole recording, then its windows.

        Args:
          sources, sample_rate, short: as for `embed`.
          scorer: the scorer that says which views it needs; None is the scorer of this encoder.
        """
        scorer = scorer or self.scorer
        waveforms, _ = self._read_whole(sources, sample_rate, short)
        rows = self._stack_in_order(self.embed_stream(self._cut_views(waveforms, scorer)))
        return rows.reshape(len(waveforms), scorer.n_views, -1)

    def _cut_views(self, waveforms: Sequence[np.ndarray], scorer: Scorer) -> list[Float32[np.ndarray, " _"]]:
        """Cuts the views of all recordings, and starts to read the kept programs that these views need."""
        views = [view for waveform in waveforms for view in scorer.views(waveform)]
        batches = self.buckets.plan([len(view) for view in views if not self.buckets.is_long(len(view))])
        self.programs.fetch(self._describe_arguments(batch) for batch in batches)
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
        channel: Channel | None = None,
    ) -> Iterator[tuple[Float32[np.ndarray, " _"] | LongAudio, bool]]:
        """Yields the recordings in order; threads decode the next ones while the device computes.

        Yields:
          The samples, or a `LongAudio` if the recording is longer than `longest` seconds; the caller must read it
          before taking the next recording. And whether somebody is heard to speak in it: True if neither `vad` nor
          `listen` asks for that.
        """

        chosen = self.channel if channel is None else channel

        def read(source: AudioSource) -> tuple[Float32[np.ndarray, " _"] | LongAudio, bool]:
            audio = open_recording(self.config, source, sample_rate, short, longest, chosen)
            speech = self._cut_silence(audio) if vad else audio
            heard = speech is not None
            if heard and listen and not isinstance(audio, LongAudio):
                heard = holds_speech(audio, self.sample_rate)
            return audio if speech is None else speech, heard

        listed = as_list(sources)
        with contextlib.closing(map_ahead(read, listed)) as recordings:
            for source, (audio, heard) in zip(listed, recordings, strict=True):
                yield audio, heard
                warn_of_silence(source, audio)  # only now: a `LongAudio` is known to be silent when it has been read
                if not heard and not (audio.is_silent if isinstance(audio, LongAudio) else is_silent(audio)):
                    warn_of_no_speech(source)

    def _cut_silence(
        self, audio: Float32[np.ndarray, " _"] | LongAudio
    ) -> Float32[np.ndarray, " _"] | LongAudio | None:
        """Returns the speech in a recording; None if there is no speech, or too little for the model."""
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
        channel: Channel | None = None,
    ) -> tuple[list[Float32[np.ndarray, " _"]], list[bool]]:
        """Reads the recordings whole; also says for each whether somebody is heard to speak in it."""
        found = list(self._read_ahead(sources, sample_rate, short, vad=vad, listen=listen, channel=channel))
        return cast("list[np.ndarray]", [audio for audio, _ in found]), [heard for _, heard in found]

    def _stack_in_order(self, embedded: EmbeddedRows) -> Float32[np.ndarray, "n embedding"]:
        rows: dict[int, np.ndarray] = {}
        for indices, embeddings in embedded:
            rows.update(zip(indices, embeddings, strict=True))
        if not rows:
            return np.empty((0, self.config.ecapa.embedding_dim), np.float32)
        return np.stack([rows[index] for index in range(len(rows))])

    def read(
        self,
        source: AudioSource,
        sample_rate: int | str | None = None,
        *,
        short: Short = "error",
        vad: bool = False,
        channel: Channel | None = None,
    ) -> Float32[np.ndarray, " samples"]:
        """Reads one recording in the form that the model takes: one channel, its rate, at least `minimum_samples`.

        Args:
          source, sample_rate, short, vad, channel: as for `embed`.

        Raises:
          AudioError: the source can't be read, is too short, or holds NaN.
        """
        chosen = self.channel if channel is None else channel
        waveform = open_recording(self.config, source, sample_rate, short, channel=chosen)
        speech = self._cut_silence(waveform) if vad else waveform
        if speech is None:
            warn_of_no_speech(source)
            speech = waveform
        assert not isinstance(speech, LongAudio)
        return speech

    def embed_stream(self, waveforms: Iterable[Float32[np.ndarray, " _"] | LongAudio]) -> EmbeddedRows:
        """Embeds waveforms as they arrive. Memory holds one unfinished batch for each length bucket.

        Args:
          waveforms: waveforms as `read` returns them; long ones are embedded chunk by chunk.

        Returns:
          An iterator that gives, batch after batch, positions in the stream and the embeddings of these waveforms;
          every position once. The order and the lengths of the waveforms alone decide which of them share a batch, so
          the same stream gives the same bits.
        """
        check_not_forked()
        pending: collections.deque[tuple[tuple[int, ...], jax.Array | np.ndarray]] = collections.deque()
        for batch, rows in self.buckets.stream(waveforms):
            embeddings = self._dispatch(batch, rows) if batch.samples else self._embed_long(rows[0])
            pending.append((batch.indices, embeddings))
            if len(pending) > 1:  # the device computes one batch while the host reads the next
                yield _copy_to_host(*pending.popleft())
        for done in pending:
            yield _copy_to_host(*done)

    @in_library_modes
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

    def _describe_arguments(self, batch: Batch) -> tuple[Variables, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Returns the arguments that `_dispatch` passes to the compiled function: variables, and shapes of the rest."""
        waveforms = jax.ShapeDtypeStruct((batch.rows, batch.samples), np.float32, sharding=self.sharding)
        lengths = jax.ShapeDtypeStruct((batch.rows,), np.int32, sharding=self.sharding)
        return self._folded, waveforms, lengths

    def _embed_batch(self, variables: Variables, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
        """The function that is compiled. A CPU computes only as many utterances at a time as its caches hold."""
        # Imported here because it imports Flax, which a process doesn't need if its programs are kept.
        from ecapa_jax.functional import embed, embed_in_groups

        rows = self.buckets.group(*waveforms.shape)
        if rows == len(waveforms):
            return embed(self.config, variables, waveforms, lengths)
        return embed_in_groups(self.config, variables, waveforms, lengths, rows)

    @in_library_modes
    def _embed_long(self, blocks: Blocks) -> Float32[np.ndarray, "1 embedding"]:
        """Embeds a waveform that is too long for a batch, chunk by chunk."""
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
        channel: Channel | None = None,
    ) -> Verification:
        """Scores two recordings and, if there is a threshold, decides whether the same person speaks in both.

        A NoSpeechWarning names a recording with less than half a second of speech; `Verification.speech` is False for
        it.

        Args:
          a, b: recordings, as for `embed`; arrays have the sample rate of the model.
          threshold: the lowest score that means yes, on the scale `Verification.score_type`; None takes the threshold
            of the model, if it has one.
          short: as for `embed`.
          scoring: `publisher`, which is the scoring of the model, or another one. Another scoring keeps the threshold
            of the model if both have the same scale.
          vad: as for `embed`.

        Raises:
          AudioError: a recording can't be embedded.
          ConfigError: the threshold is outside the range of the score, or the model lacks what the scoring needs.
        """
        scorer = self.scorer.with_scoring(scoring)
        threshold = scorer.scoring.threshold if threshold is None else check_threshold(threshold, scorer.scoring)
        waveforms, heard = self._read_whole([a, b], None, short, vad=vad, listen=True, channel=channel)
        seconds = [len(waveform) / self.sample_rate for waveform in waveforms]
        rows = self._stack_in_order(self.embed_stream(self._cut_views(waveforms, scorer)))
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
        """Scores two recordings from their embeddings, or from those of their views, as `embed_views` returns them."""
        return self.scorer.score(np.atleast_2d(a), np.atleast_2d(b), seconds)

    def warm_up(self, max_seconds: float) -> int:
        """Compiles every batch shape that utterances of up to `max_seconds` can have; returns their number."""
        batches = self.buckets.up_to(int(max_seconds * self.sample_rate))
        for batch in batches:
            self._dispatch(batch, []).block_until_ready()
        return len(batches)


def _copy_to_host(
    indices: tuple[int, ...], embeddings: jax.Array | np.ndarray
) -> tuple[tuple[int, ...], Float32[np.ndarray, "rows embedding"]]:
    """Copies embeddings to the host and drops the rows that only fill up the batch."""
    return indices, np.asarray(embeddings)[: len(indices)]


def _unpickle(
    config: ModelConfig,
    variables: Variables,
    scoring: Scoring,
    embedding_mean: np.ndarray | None,
    cohort: Cohort | None,
    dtype: Dtype,
    programs: Path | None,
) -> SpeakerEncoder:
    return SpeakerEncoder(
        config,
        variables,
        scoring=scoring,
        embedding_mean=embedding_mean,
        cohort=cohort,
        dtype=dtype,
        programs=programs,
    )
