"""SpeakerEncoder: recordings in, embeddings and decisions out."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Float32

from ecapa_jax import functional, long, runtime
from ecapa_jax.ahead import map_ahead
from ecapa_jax.batches import MAX_BATCH_SECONDS, Batch, Blocks, Buckets
from ecapa_jax.config import ModelConfig, to_dict
from ecapa_jax.functional import Variables
from ecapa_jax.io.audio import AudioSource, LongAudio
from ecapa_jax.io.bundle import Bundle
from ecapa_jax.io.scoring_arrays import Cohort
from ecapa_jax.recordings import Short as Short
from ecapa_jax.recordings import SilenceWarning as SilenceWarning
from ecapa_jax.recordings import as_list, open_recording, warn_of_silence
from ecapa_jax.scorer import Scorer, ScoringName, Verification, checked_threshold
from ecapa_jax.scoring_config import Scoring
from ecapa_jax.windows import Windows, embed_windows, samples_of

Dtype = Literal["float32", "bfloat16", "auto"]


class SpeakerEncoder:
    """A model ready to score: decoding, bucketed batches, one compiled function, decisions.

    Attributes:
      config: front end and network.
      dtype: compute dtype, float32 or bfloat16.
      scorer: from embeddings to scores.
      buckets, compile_count: the shapes that are compiled when met, and compilations so far.
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
    ):
        self.config = config
        self.scorer = Scorer(scoring or Scoring(), embedding_mean, cohort)
        mesh = Mesh(np.asarray(devices or jax.local_devices()), ("data",))
        first: jax.Device = mesh.devices.flat[0]
        self.dtype = runtime.fastest_dtype(first) if dtype == "auto" else dtype
        self.buckets = Buckets(config.fbank.sample_rate, mesh.size, first.platform)
        self._sharding, self._everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
        self.variables = variables
        self._real = self._padded = self.compile_count = 0
        self._embed = jax.jit(self._counted)

    @classmethod
    def from_bundle(
        cls, bundle: Bundle, *, devices: Sequence[jax.Device] | None = None, dtype: Dtype = "float32"
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
        )

    def with_dtype(self, dtype: Dtype) -> SpeakerEncoder:
        """This model computing in another dtype: weights on the device are shared, where they stay the same."""
        return SpeakerEncoder(
            self.config,
            self.variables,
            scoring=self.scoring,
            embedding_mean=self.embedding_mean,
            cohort=self.scorer.cohort,
            devices=list(self._sharding.mesh.devices.flat),
            dtype=dtype,
        )

    @property
    def variables(self) -> Variables:
        """Weights and statistics as given, on every device; set them to embed with others."""
        return self._variables

    @variables.setter
    def variables(self, variables: Variables) -> None:
        self._variables = jax.device_put(variables, self._everywhere)
        self._folded = functional.fold(self.config, self._variables, self.dtype)
        self.__dict__.pop("fingerprint", None)

    @property
    def scoring(self) -> Scoring:
        """Threshold and way of scoring."""
        return self.scorer.scoring

    @property
    def embedding_mean(self) -> Float[np.ndarray, " embedding"] | None:
        """Mean embedding of a training set, where the model brings one."""
        return self.scorer.embedding_mean

    def _counted(self, variables: Variables, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
        self.compile_count += 1  # runs when jax traces, once per shape
        return functional.embed_in_groups(
            self.config, variables, waveforms, lengths, self.buckets.group(*waveforms.shape)
        )

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
    def sample_rate(self) -> int:
        """Rate of the model's waveforms, Hz; other rates are resampled to it."""
        return self.config.fbank.sample_rate

    @property
    def minimum_samples(self) -> int:
        """Fewest samples of an utterance at the model's rate."""
        return functional.minimum_samples(self.config)

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
        """The embeddings that `scorer.score` takes of each recording: first the whole's, then those of its windows.

        Args:
          sources, sample_rate, short: as for `embed`.
          scorer: None is the model's.
        """
        return self._embed_views(self._read_whole(sources, sample_rate, short), scorer or self.scorer)

    def _embed_views(self, waveforms: Sequence[np.ndarray], scorer: Scorer) -> Float32[np.ndarray, "n views embedding"]:
        rows = self._embed_waveforms(view for waveform in waveforms for view in scorer.views(waveform))
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

        Yields:
          Positions in the stream and their embeddings, batch after batch, every position once. Which waveforms share a
          batch follows from their order and lengths alone: the same stream gives the same bits.
        """
        running: collections.deque[tuple[tuple[int, ...], jax.Array | np.ndarray]] = collections.deque()
        for batch, rows in self.buckets.stream(waveforms):
            running.append((batch.indices, self._dispatch(batch, rows) if batch.samples else self._embed_long(rows[0])))
            if len(running) > 1:  # one computes while the next is read
                indices, embeddings = running.popleft()
                yield indices, np.asarray(embeddings)[: len(indices)]
        for indices, embeddings in running:
            yield indices, np.asarray(embeddings)[: len(indices)]

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
            self._run(batch, [])
        return len(batches)

    @property
    def padding_waste(self) -> float:
        """Share of the samples computed so far that were padding: of length buckets and of rows without a recording."""
        return 1 - self._real / self._padded if self._padded else 0.0

    def _embed_long(self, blocks: Blocks) -> Float32[np.ndarray, "1 embedding"]:
        place = functools.partial(jax.device_put, device=self._sharding)
        return long.embed(self.config, self._folded, blocks, rows=self.buckets.n_devices, place=place)[None]

    def _run(self, batch: Batch, waveforms: Sequence[np.ndarray]) -> Float32[np.ndarray, "rows embedding"]:
        return np.asarray(self._dispatch(batch, waveforms))

    def _dispatch(self, batch: Batch, waveforms: Sequence[np.ndarray]) -> Float32[jax.Array, "rows embedding"]:
        padded = np.zeros((batch.rows, batch.samples), np.float32)
        lengths = np.zeros(batch.rows, np.int32)
        for row, waveform in enumerate(waveforms):
            padded[row, : len(waveform)] = waveform
            lengths[row] = len(waveform)
        self._real += int(lengths.sum())
        self._padded += padded.size
        placed = jax.device_put((padded, lengths), self._sharding)
        return self._embed(self._folded, *placed)
