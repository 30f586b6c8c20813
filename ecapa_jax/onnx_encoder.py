"""An exported ONNX file as an encoder: the same recordings in, the same decisions out, computed by ONNX Runtime."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32

from ecapa_jax.audio.load import LongAudio
from ecapa_jax.batching import Blocks, Buckets, minimum_samples
from ecapa_jax.config import Variables
from ecapa_jax.encoder import Dtype, EmbeddedRows, SpeakerEncoder
from ecapa_jax.errors import AudioError, BundleError, ConfigError
from ecapa_jax.onnx_file import EMBEDDINGS, INSTALL, LENGTHS, WAVEFORMS, OnnxFile, read_onnx
from ecapa_jax.runtime.programs import Programs
from ecapa_jax.scoring.scorer import Scorer

MAX_SECONDS = 600.0
"""Longest recording: ONNX Runtime computes it in one piece, and its memory grows with the length."""


class OnnxEncoder(SpeakerEncoder):
    """A `SpeakerEncoder` whose embeddings ONNX Runtime computes from an exported file, one recording at a time.

    What needs the weights themselves (`variables`, `with_dtype`) raises a ConfigError.

    Attributes:
      config: front end and network of the model that was exported.
      dtype: of the weights in the file: `float32`, `float16` or `int8`.
      fingerprint: sha256 of the file.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        """Reads `name`, as `ecapa-jax export --to onnx` writes it, and makes the session.

        Raises:
          BundleError: it is damaged, no such file, or one that ONNX Runtime does not take.
          ConfigError: onnx or onnxruntime is not installed.
        """
        file = read_onnx(name)
        self._name = os.fspath(name)
        self._session = _session(self._name, file)
        self.fingerprint = hashlib.sha256(file.content).hexdigest()
        self.config, self.dtype = file.config, file.precision
        self.scorer = Scorer(file.scoring, file.embedding_mean, file.cohort)
        self.sample_rate, self.minimum_samples = file.config.fbank.sample_rate, minimum_samples(file.config)
        self.channel = None
        self.devices = jax.local_devices(backend="cpu")[:1]
        self.sharding = NamedSharding(Mesh(np.asarray(self.devices), ("data",)), PartitionSpec("data"))
        self.buckets = Buckets(self.sample_rate)
        self.programs = Programs(self._embed_batch, self.fingerprint)  # none is ever compiled
        self._real_samples = self._padded_samples = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path of the file."""
        return OnnxEncoder, (os.path.abspath(self._name),)

    @property
    def variables(self) -> Variables:
        """Nothing: the weights are in the session.

        Raises:
          ConfigError: always.
        """
        raise ConfigError(f"{self._name} is an ONNX file, whose weights can't be taken out: name the bundle instead")

    @variables.setter
    def variables(self, variables: Variables) -> None:
        raise ConfigError(f"{self._name} is an ONNX file, whose weights can't be changed: name the bundle instead")

    def with_dtype(self, dtype: Dtype) -> SpeakerEncoder:
        """Not for an ONNX file.

        Raises:
          ConfigError: always.
        """
        raise ConfigError("an ONNX file has one precision: export the bundle again with another --quantize")

    def warm_up(self, max_seconds: float) -> int:
        """Does nothing, as nothing is compiled; returns 0."""
        return 0

    def embed_stream(self, waveforms: Iterable[Float32[np.ndarray, " _"] | LongAudio]) -> EmbeddedRows:
        """As `SpeakerEncoder.embed_stream`, each recording by itself.

        Raises:
          AudioError: a recording is longer than `MAX_SECONDS`.
          BundleError: ONNX Runtime fails.
        """
        for index, waveform in enumerate(waveforms):
            whole = waveform if isinstance(waveform, np.ndarray) else self._joined(waveform)
            yield (index,), self._embed(whole)

    def _joined(self, blocks: Blocks) -> Float32[np.ndarray, " samples"]:
        rate, parts, n_samples = self.config.fbank.sample_rate, [], 0
        for block in blocks:
            parts.append(block)
            n_samples += len(block)
            if n_samples > MAX_SECONDS * rate:
                name = blocks.name if isinstance(blocks, LongAudio) else "a recording"
                raise AudioError(
                    f"{name} is longer than {MAX_SECONDS:g} s, which an ONNX file computes in one piece: cut it, or "
                    f"embed it with the bundle"
                )
        return np.concatenate(parts)

    def _embed(self, waveform: Float32[np.ndarray, " samples"]) -> Float32[np.ndarray, "1 embedding"]:
        inputs = {WAVEFORMS: waveform[None], LENGTHS: np.array([len(waveform)], np.int64)}
        try:
            (found,) = self._session.run([EMBEDDINGS], inputs)
        except Exception as error:
            raise BundleError(f"{self._name} fails in ONNX Runtime: {_first_line(error)}") from error
        if found.shape != (1, self.config.ecapa.embedding_dim):
            raise BundleError(f"{self._name} holds another network than its metadata says: export the model again")
        return np.asarray(found, np.float32)


def _session(name: str, file: OnnxFile) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        # From bytes: a session made from a path would look for further files beside it.
        session = onnxruntime.InferenceSession(file.content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise BundleError(f"{name} is no model that ONNX Runtime takes: {_first_line(error)}") from error
    _check(name, file, session)
    return session


def _check(name: str, file: OnnxFile, session: Any) -> None:
    """Checks that the file takes recordings, and has the inputs and the output that its metadata promises."""
    if file.takes != "waveform":
        what = "features" if file.takes == "features" else "the features of sherpa-onnx"
        raise BundleError(
            f"{name} takes {what}, not recordings: export the model with --input waveform to load it here"
        )
    inputs = [value.name for value in session.get_inputs()]
    outputs = [(value.name, value.shape[-1:]) for value in session.get_outputs()]
    if inputs != [WAVEFORMS, LENGTHS] or outputs != [(EMBEDDINGS, [file.config.ecapa.embedding_dim])]:
        raise BundleError(f"{name} holds another network than its metadata says: export the model again")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
