"""Finds speech for the calibration of int8 activations and computes the inputs of the exported model from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import TensorProto, helper

from ecapa_jax.audio.recordings import open_recording
from ecapa_jax.batching import minimum_samples
from ecapa_jax.config import FbankConfig, ModelConfig, Variables
from ecapa_jax.convert.onnx.front_end import write_front_end
from ecapa_jax.convert.onnx.graph import Graph
from ecapa_jax.convert.onnx.quantize import Feed
from ecapa_jax.convert.onnx.sherpa import framework, sherpa_front_end
from ecapa_jax.errors import ConfigError
from ecapa_jax.features.frames import frame_count
from ecapa_jax.onnx_file import LENGTHS, WAVEFORMS

MAX_RECORDINGS = 200
"""Largest number of recordings for a calibration; more recordings would hardly widen the ranges."""

MAX_SECONDS = 20
"""Number of seconds that are used from the beginning of each recording."""

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr"}


def demo_recordings() -> list[Path]:
    """Returns the packaged demo speech: six recordings of synthetic voices."""
    folder = Path(str(resources.files("ecapa_jax") / "serve" / "static" / "samples"))
    return sorted(folder.glob("*.flac"))


def find_recordings(folder: str | os.PathLike[str]) -> list[Path]:
    """Finds recordings below a folder and chooses at most `MAX_RECORDINGS` of them evenly.

    Raises:
      ConfigError: the folder contains no recordings.
    """
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ConfigError(f"{folder} contains no recordings: pass a folder of speech with --calibration")
    return found[:: -(-len(found) // MAX_RECORDINGS)]


def calibration_feeds(config: ModelConfig, variables: Variables, takes: str, paths: Sequence[Path]) -> Iterator[Feed]:
    """Computes the inputs of an exported model for each recording.

    Args:
      config: configuration of the model.
      variables: variables of the model; a front end may need the constants in them.
      takes: kind of input of the exported model: `waveform`, `features` or `sherpa`.
      paths: paths of the recordings.

    Raises:
      AudioError: a recording can't be read.
    """
    features = None if takes == "waveform" else make_feature_function(config, variables, takes)
    for path in paths:
        audio = open_recording(config, path, None, "repeat")
        assert isinstance(audio, np.ndarray)
        waveform = audio[: MAX_SECONDS * config.fbank.sample_rate]
        feed: Feed = {WAVEFORMS: waveform[None], LENGTHS: np.array([len(waveform)], np.int64)}
        yield feed if features is None else features(feed)


class FrontEndRunner:
    """Front end in ONNX Runtime, which computes the inputs of a model without a front end."""

    def __init__(self, fbank: FbankConfig, model: onnx.ModelProto, name: str, *, transposed: bool) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self._fbank, self._name, self._transposed = fbank, name, transposed

    def __call__(self, feed: Feed) -> Feed:
        """Computes the input of the model from the waveform of one recording, without blank frames."""
        n_frames = frame_count(self._fbank, int(feed[LENGTHS][0]))
        found: Float32[np.ndarray, "one mels frames"] = self._session.run(None, feed)[0][:, :, :n_frames]
        if self._transposed:
            return {self._name: np.ascontiguousarray(found), "length": np.array([n_frames], np.int64)}
        return {self._name: np.ascontiguousarray(found.transpose(0, 2, 1))}


def make_feature_function(config: ModelConfig, variables: Variables, takes: str) -> FrontEndRunner:
    """Makes the function that turns waveforms into the input of a model that takes features.

    Args:
      config, variables, takes: as for `calibration_feeds`.
    """
    fbank, name = config.fbank, "features"
    kind = framework(fbank) if takes == "sherpa" else ""
    if kind:
        fbank, name = (fbank, "audio_signal") if kind == "nemo" else (sherpa_front_end(fbank), "x")
    graph = Graph()
    features, _ = write_front_end(graph, fbank, variables["constants"], WAVEFORMS, LENGTHS, minimum_samples(config))
    graph.op("Identity", features, name="found")
    model = graph.make_model(
        [
            helper.make_tensor_value_info(WAVEFORMS, TensorProto.FLOAT, ["batch", "samples"]),
            helper.make_tensor_value_info(LENGTHS, TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["batch", fbank.n_mels, "frames"])],
        name="front_end",
        text="",
    )
    return FrontEndRunner(fbank, model, name, transposed=kind == "nemo")
