"""Speaker encoder that runs an exported ONNX file in ONNX Runtime and makes the same decisions as the bundle."""

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
"""Longest recording in seconds. ONNX Runtime computes a recording in one piece, so its memory grows with the length."""


class OnnxEncoder(SpeakerEncoder):
    """A `SpeakerEncoder` whose embeddings ONNX Runtime computes from an exported file, one recording at a time.

    Everything that needs the weights themselves (`variables`, `with_dtype`) raises a ConfigError.

    Attributes:
      config: front end and network of the model that was exported.
      dtype: type of the weights in the file: `float32`, `float16` or `int8`.
      fingerprint: sha256 of the file.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        """Reads the file `name`, which `ecapa-jax export --to onnx` wrote, and makes the session.

        Raises:
          BundleError: the file is missing or damaged, or ONNX Runtime does not accept it.
          ConfigError: onnx or onnxruntime is not installed.
        """
        file = read_onnx(name)
        self._name = os.fspath(name)
        self._session = _make_session(self._name, file)
        self.fingerprint = hashlib.sha256(file.content).hexdigest()
        self.config, self.dtype = file.config, file.precision
        self.scorer = Scorer(file.scoring, file.embedding_mean, file.cohort)
        self.sample_rate, self.minimum_samples = file.config.fbank.sample_rate, minimum_samples(file.config)
        self.channel = None
        self.devices = jax.local_devices(backend="cpu")[:1]
        self.sharding = NamedSharding(Mesh(np.asarray(self.devices), ("data",)), PartitionSpec("data"))
        self.buckets = Buckets(self.sample_rate)
        self.programs = Programs(self._embed_batch, self.fingerprint)  # no program is ever compiled
        self._real_samples = self._padded_samples = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path of the file."""
        return OnnxEncoder, (os.path.abspath(self._name),)

    @property
    def variables(self) -> Variables:
        """Weights of the encoder, which are not available because they are inside the session.

        Raises:
          ConfigError: always.
        """
        raise ConfigError(f"{self._name} is an ONNX file, whose weights can't be taken out: use the bundle instead")

    @variables.setter
    def variables(self, variables: Variables) -> None:
        raise ConfigError(f"{self._name} is an ONNX file, whose weights can't be changed: use the bundle instead")

    def with_dtype(self, dtype: Dtype) -> SpeakerEncoder:
        """Raises an error, because an ONNX file has only one precision.

        Raises:
          ConfigError: always.
        """
        raise ConfigError("an ONNX file has one precision: export the bundle again with another --quantize")

    def warm_up(self, max_seconds: float) -> int:
        """Does nothing, because ONNX Runtime compiles nothing; returns 0."""
        return 0

    def embed_stream(self, waveforms: Iterable[Float32[np.ndarray, " _"] | LongAudio]) -> EmbeddedRows:
        """Embeds recordings as `SpeakerEncoder.embed_stream` does, one recording at a time.

        Raises:
          AudioError: a recording is longer than `MAX_SECONDS`.
          BundleError: ONNX Runtime fails.
        """
        for index, waveform in enumerate(waveforms):
            whole = waveform if isinstance(waveform, np.ndarray) else self._join(waveform)
            yield (index,), self._embed(whole)

    def _join(self, blocks: Blocks) -> Float32[np.ndarray, " samples"]:
        rate, parts, n_samples = self.config.fbank.sample_rate, [], 0
        for block in blocks:
            parts.append(block)
            n_samples += len(block)
            if n_samples > MAX_SECONDS * rate:
                name = blocks.name if isinstance(blocks, LongAudio) else "a recording"
                raise AudioError(
                    f"{name} is longer than {MAX_SECONDS:g} s, the limit of an ONNX file: cut the recording, or embed "
                    f"it with the bundle"
                )
        return np.concatenate(parts)

    def _embed(self, waveform: Float32[np.ndarray, " samples"]) -> Float32[np.ndarray, "1 embedding"]:
        inputs = {WAVEFORMS: waveform[None], LENGTHS: np.array([len(waveform)], np.int64)}
        try:
            (found,) = self._session.run([EMBEDDINGS], inputs)
        except Exception as error:
            raise BundleError(f"{self._name} fails in ONNX Runtime: {_first_line(error)}") from error
        if found.shape != (1, self.config.ecapa.embedding_dim):
            raise BundleError(
                f"{self._name} contains a different network from the one in its metadata: export the model again"
            )
        return np.asarray(found, np.float32)


def _make_session(name: str, file: OnnxFile) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        # A session made from a path would look for further files beside it, so make the session from bytes.
        session = onnxruntime.InferenceSession(file.content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exceptions of ONNX Runtime have no common base
        raise BundleError(f"{name} is not a model that ONNX Runtime accepts: {_first_line(error)}") from error
    _check_interface(name, file, session)
    return session


def _check_interface(name: str, file: OnnxFile, session: Any) -> None:
    """Checks that the file takes recordings, and has the inputs and the output that its metadata describes."""
    if file.takes != "waveform":
        what = "features" if file.takes == "features" else "the features of sherpa-onnx"
        raise BundleError(f"{name} takes {what}, not recordings: export the model again with --input waveform")
    inputs = [value.name for value in session.get_inputs()]
    outputs = [(value.name, value.shape[-1:]) for value in session.get_outputs()]
    if inputs != [WAVEFORMS, LENGTHS] or outputs != [(EMBEDDINGS, [file.config.ecapa.embedding_dim])]:
        raise BundleError(f"{name} contains a different network from the one in its metadata: export the model again")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
