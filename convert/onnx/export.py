"""Exports a bundle as an ONNX model, for ONNX Runtime, OpenVINO, sherpa-onnx and other programs."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from ecapa_jax.batching import minimum_samples
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.convert.onnx.front_end import append_blank_frames, has_blank_frames, write_front_end
from ecapa_jax.convert.onnx.graph import Graph
from ecapa_jax.convert.onnx.metadata import card, metadata
from ecapa_jax.convert.onnx.network import write_network
from ecapa_jax.convert.onnx.pooling import write_pooling
from ecapa_jax.convert.onnx.utterances import Utterances, WholeUtterances
from ecapa_jax.folding import fold
from ecapa_jax.onnx_file import EMBEDDINGS, LENGTHS, WAVEFORMS

Input = Literal["waveform", "features"]
FEATURES = "features"


def export_onnx(bundle: Bundle, takes: Input = "waveform") -> onnx.ModelProto:
    """Makes the ONNX model of a bundle, in float32.

    Args:
      bundle: the model.
      takes: kind of input. With `waveform`, the inputs are `waveforms` [batch, samples] float32, right-padded with any
        values, and `lengths` [batch] int64. With `features`, the input is `features` [batch, frames, mels] float32,
        normalised as by the front end and without padding.

    Returns:
      A model whose output is `embeddings` [batch, embedding_dim] float32. The embedding of an utterance with fewer than
      `minimum_samples` samples is NaN.
    """
    graph = Graph()
    variables = to_numpy(fold(bundle.config, to_numpy(bundle.variables)))
    if takes == "waveform":
        inputs = [
            helper.make_tensor_value_info(WAVEFORMS, TensorProto.FLOAT, ["batch", "samples"]),
            helper.make_tensor_value_info(LENGTHS, TensorProto.INT64, ["batch"]),
        ]
        found = _write_from_waveform(graph, bundle, variables)
    else:
        mels = bundle.config.fbank.n_mels
        inputs = [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", "frames", mels])]
        frames = graph.op("Transpose", FEATURES, perm=[0, 2, 1])
        found = write_from_frames(graph, bundle, variables, frames)
    graph.op("Identity", found, name=EMBEDDINGS)
    outputs = [
        helper.make_tensor_value_info(EMBEDDINGS, TensorProto.FLOAT, ["batch", bundle.config.ecapa.embedding_dim])
    ]
    about = metadata(bundle, takes)
    model = graph.make_model(inputs, outputs, name="ecapa_tdnn", text=card(about))
    helper.set_model_props(model, about)
    return model


def _write_from_waveform(graph: Graph, bundle: Bundle, variables: dict[str, Any]) -> str:
    config, minimum = bundle.config, minimum_samples(bundle.config)
    features, utterances = write_front_end(graph, config.fbank, variables["constants"], WAVEFORMS, LENGTHS, minimum)
    x = _write_embedding(graph, bundle, variables, features, utterances)
    enough = graph.op("GreaterOrEqual", LENGTHS, graph.constant([minimum]), name="is_long_enough")
    enough = graph.op("Unsqueeze", enough, graph.constant([1]))
    return graph.op("Where", enough, x, graph.constant(np.nan), name="nan_where_too_short")


def write_from_frames(graph: Graph, bundle: Bundle, variables: dict[str, Any], frames: str) -> str:
    """Writes the network for normalised features [batch, mels, time] without padding; returns the embeddings.

    If the front end of the family appends blank frames, this function appends them.
    """
    utterances: Utterances
    if has_blank_frames(bundle.config.fbank):
        frames, utterances = append_blank_frames(graph, bundle.config.fbank, frames)
    else:
        utterances = WholeUtterances(graph, frames)
    return _write_embedding(graph, bundle, variables, frames, utterances)


def _write_embedding(
    graph: Graph, bundle: Bundle, variables: dict[str, Any], features: str, utterances: Utterances
) -> str:
    x = write_network(graph, bundle.config.ecapa, variables, features, utterances)
    return write_pooling(graph, bundle.config.ecapa, variables, x, utterances)


def to_numpy(variables: Any) -> Any:
    """Converts the arrays of a nested dict to NumPy."""
    if isinstance(variables, dict):
        return {name: to_numpy(leaf) for name, leaf in variables.items()}
    return np.asarray(variables)
