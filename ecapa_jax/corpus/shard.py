"""Embeds the recordings of one shard; a recording that can't be embedded gets an error instead."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from ecapa_jax.audio.decoding import channel_from_text
from ecapa_jax.audio.load import AudioSource, is_silent, name_of
from ecapa_jax.audio.prefetch import map_ahead
from ecapa_jax.config import Short
from ecapa_jax.corpus.manifest import RecordingPart
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import AudioError, Stopped
from ecapa_jax.files.recordings import why_no_recording
from ecapa_jax.vad.silence import cut_silence

Advance = Callable[[int, float], None]
"""Called with the number of recordings and seconds of speech just done."""


@dataclasses.dataclass(frozen=True, eq=False)
class ShardEmbeddings:
    """Embeddings of n recordings, or the errors of those that have none.

    Attributes:
      embeddings: [n, embedding_dim] float32; the row of a recording without an embedding is NaN.
      seconds: [n] float64, duration of the speech in each recording; NaN without an embedding.
      errors: why a recording has no embedding; None if it has one.
    """

    embeddings: Float32[np.ndarray, "n embedding"]
    seconds: Float64[np.ndarray, " n"]
    errors: list[str | None]


def embed_recordings(
    encoder: SpeakerEncoder,
    sources: Sequence[AudioSource | RecordingPart],
    *,
    sample_rate: int | str | None = None,
    short: Short = "error",
    vad: bool = False,
    workers: int | None = None,
    advance: Advance | None = None,
    stop: threading.Event | None = None,
) -> ShardEmbeddings:
    """Embeds recordings, while threads decode the next ones. Memory does not grow with the number of recordings.

    No recording stops the others: a recording that is missing, not audio, truncated, not finite, too short (see
    `short`) or without a signal gets an error instead of an embedding. The order and lengths of the recordings alone
    decide which of them share a batch, so that the same sources give the same bits on the same devices.

    Args:
      encoder: the model.
      sources, sample_rate, short, vad: as for `SpeakerEncoder.embed`; a source may also be a part of a recording.
      workers: number of decoding threads; None is one per core, but at most `audio.prefetch.MAX_WORKERS`.
      advance: called after every batch and every error.
      stop: event that is checked before each recording and after each batch.

    Raises:
      Stopped: `stop` was set.
    """
    result = ShardEmbeddings(
        np.full((len(sources), encoder.config.ecapa.embedding_dim), np.nan, np.float32),
        np.full(len(sources), np.nan),
        [None] * len(sources),
    )
    advance = advance or (lambda files, seconds: None)
    order: list[int] = []  # position in `sources` of each recording that goes to the device

    def iterate_waveforms() -> Iterator[np.ndarray]:
        for index, (waveform, error) in enumerate(decoded):
            _check_stop(stop)
            if waveform is None:
                result.errors[index] = error
                advance(1, 0.0)
                continue
            order.append(index)
            result.seconds[index] = len(waveform) / encoder.sample_rate
            yield waveform

    read = functools.partial(_read, _Reader(encoder, sample_rate, short, vad))
    with contextlib.closing(map_ahead(read, sources, workers)) as decoded:
        for positions, embeddings in encoder.embed_stream(iterate_waveforms()):
            indices = [order[position] for position in positions]
            result.embeddings[indices] = embeddings
            advance(len(indices), float(result.seconds[indices].sum()))
            _check_stop(stop)
    for index in np.flatnonzero(~np.isfinite(result.embeddings).all(axis=1)).tolist():
        result.embeddings[index], result.seconds[index] = np.nan, np.nan
        result.errors[index] = result.errors[index] or f"{_name(sources[index])}: its embedding is not finite"
    return result


def _check_stop(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise Stopped("stopped on request")


Decoded = tuple[Float32[np.ndarray, " samples"] | None, str | None]


class _Reader:
    """Reads recordings and parts of recordings; keeps the last two recordings whose parts were read."""

    def __init__(self, encoder: SpeakerEncoder, sample_rate: int | str | None, short: Short, vad: bool):
        self._encoder, self._sample_rate, self._short, self._vad = encoder, sample_rate, short, vad
        self._whole = functools.lru_cache(2)(functools.partial(self._file, short="repeat"))

    def read(self, source: AudioSource | RecordingPart) -> Float32[np.ndarray, " samples"]:
        """Reads the samples.

        Raises:
          AudioError: the source can't be read, is too short, or holds no speech although only speech is wanted.
        """
        samples = self._part(source) if isinstance(source, RecordingPart) else self._file(source, short=self._short)
        if not self._vad:
            return samples
        speech = cut_silence(samples, self._encoder.sample_rate)
        if not isinstance(speech, np.ndarray) or len(speech) < self._encoder.minimum_samples:
            raise AudioError(
                f"{_name(source)}: nobody is heard to speak, so nothing is left when the silence is cut away"
            )
        return speech

    def _file(
        self, source: AudioSource, channel: str | None = None, *, short: Short
    ) -> Float32[np.ndarray, " samples"]:
        if isinstance(source, str) and (why := why_no_recording(source)):
            raise AudioError(why)
        chosen = None if channel is None else channel_from_text(channel)
        return self._encoder.read(source, self._sample_rate, short=short, channel=chosen)

    def _part(self, part: RecordingPart) -> Float32[np.ndarray, " samples"]:
        rate, minimum = self._encoder.sample_rate, self._encoder.minimum_samples
        start, stop = part.bounds(rate)
        whole = self._whole(part.path, part.channel)
        samples = whole[start:stop]
        if len(samples) == 0:
            raise AudioError(f"{part.path}: the part from {start / rate:g} s is outside its {len(whole) / rate:g} s")
        if len(samples) >= minimum:
            return samples
        if self._short == "error":
            raise AudioError(
                f"{part.path}: the part from {start / rate:g} s is too short: {len(samples)} samples at {rate} Hz, "
                f"this model needs {minimum}; give a longer one, or repeat it (--short repeat)"
            )
        return np.resize(samples, minimum)


def _name(source: AudioSource | RecordingPart) -> str:
    return source.path if isinstance(source, RecordingPart) else name_of(source)


def _read(reader: _Reader, source: AudioSource | RecordingPart) -> Decoded:
    name = _name(source)
    try:
        waveform = reader.read(source)
    except AudioError as error:
        return None, str(error)
    except Exception as error:  # a damaged file can make a decoder raise any error, which must not end a long run
        return None, f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
    if is_silent(waveform):
        return None, f"{name}: has no signal (all samples are equal), so there is no voice to embed"
    return waveform, None


class ShardEmbedder:
    """A picklable callable that embeds one shard, to be mapped by Ray Data, Beam, Spark or a process pool.

        embedder = ShardEmbedder(functools.partial(ecapa_jax.load, "BUNDLE"))
        embedder({"id": ids, "path": paths})

    The model is loaded on the first call, once in each process; the pickle contains no weights.
    """

    def __init__(
        self,
        load: Callable[[], SpeakerEncoder],
        *,
        short: Short = "error",
        vad: bool = False,
        workers: int | None = None,
        sample_rate: int | str | None = None,
    ):
        """Stores the options of a call.

        Args:
          load: function that makes the encoder; must be picklable.
          short, vad, workers, sample_rate: as for `embed_recordings`.
        """
        self._load = pickle.dumps(load)
        self._options: dict[str, Any] = {"short": short, "vad": vad, "workers": workers, "sample_rate": sample_rate}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Embeds a batch of rows.

        Args:
          batch: `id` [n], and `path` [n] or `audio` [n] (waveforms, or the bytes of files).

        Returns:
          `id` [n]; `embedding` [n, embedding_dim] float32 and `seconds` [n] float64, both NaN after an error; `error`
          [n], the message, or "" if there was no error.
        """
        sources = batch["audio"] if "audio" in batch else batch["path"]
        done = embed_recordings(_encoder(self._load), [_to_text(source) for source in sources], **self._options)
        return {
            "id": np.asarray(batch["id"], object),
            "embedding": done.embeddings,
            "seconds": done.seconds,
            "error": np.array([error or "" for error in done.errors], object),
        }


def _to_text(source: Any) -> AudioSource:
    """Converts NumPy strings to Python strings."""
    return str(source) if isinstance(source, str) else source


@functools.cache
def _encoder(load: bytes) -> SpeakerEncoder:
    """Makes one encoder for each process and model, even if its pickle arrives several times."""
    return pickle.loads(load)()
