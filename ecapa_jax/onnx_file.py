"""Reads the metadata of an exported model.onnx and refuses damaged or unsafe files before a runtime loads them.

metadata key `ecapa_jax`   JSON with schema, input, precision, configuration, scoring with its arrays, provenance
the other keys             plain values for programs without this library, such as sample_rate and threshold
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecapa_jax.config import ModelConfig, from_dict, to_dict
from ecapa_jax.errors import BundleError, ConfigError
from ecapa_jax.scoring.config import Cohort, Scoring, scoring_from_dict

if TYPE_CHECKING:
    import onnx

SCHEMA = 1
KEY = "ecapa_jax"
WAVEFORMS, LENGTHS, EMBEDDINGS = "waveforms", "lengths", "embeddings"
MAX_BYTES = 2**31 - 1
"""Largest size of a protobuf file."""

DOMAINS = {"", "ai.onnx", "com.microsoft"}
"""Domains of operators that an exported file may use, because ONNX Runtime contains them."""

INSTALL = "an ONNX file needs onnx and onnxruntime: pip install 'ecapa-jax[onnx]'"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OnnxFile:
    """An exported model.

    Attributes:
      content: bytes of the file.
      takes: kind of input: `waveform`, `features` or `sherpa`.
      precision: precision of the weights: `float32`, `float16` or `int8`.
      config: configuration of the model that was exported.
      scoring: scoring of the model.
      embedding_mean: mean embedding [D], if the model has one.
      cohort: speakers that normalise scores, if the model has a cohort.
      provenance: provenance of the model, as in the bundle.
      card: description of the model for people.
    """

    content: bytes = dataclasses.field(repr=False)
    takes: str
    precision: str
    config: ModelConfig
    scoring: Scoring
    embedding_mean: np.ndarray | None
    cohort: Cohort | None
    provenance: dict[str, Any]
    card: str


def is_onnx(name: str | os.PathLike[str] | None) -> bool:
    """Whether the name of a model refers to an ONNX file and not to a bundle."""
    return name is not None and os.fspath(name).lower().endswith(".onnx") and not os.path.isdir(name)


def make_document(
    *,
    takes: str,
    precision: str,
    config: ModelConfig,
    scoring: Scoring,
    embedding_mean: np.ndarray | None,
    cohort: Cohort | None,
    provenance: dict[str, Any],
) -> str:
    """Makes the value of the metadata key `ecapa_jax`."""
    arrays: dict[str, Any] = {}
    if embedding_mean is not None:
        arrays["embedding_mean"] = _encode_array(embedding_mean)
    if cohort is not None:
        arrays["cohort"] = {"embeddings": _encode_array(cohort.embeddings), "speakers": list(cohort.speakers)}
    return json.dumps(
        {
            "schema": SCHEMA,
            "input": takes,
            "precision": precision,
            "config": to_dict(config),
            "scoring": dataclasses.asdict(scoring),
            "arrays": arrays,
            "provenance": provenance,
        },
        allow_nan=False,
    )


def read_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Reads and checks an exported file, without reading another file and without running anything in it.

    Raises:
      BundleError: the file is missing, damaged, not an export of this library, or keeps weights in other files.
      ConfigError: onnx is not installed.
    """
    name = os.fspath(path)
    model, content = _parse_file(name)
    _check_whole(name, model)
    try:
        about = json.loads({prop.key: prop.value for prop in model.metadata_props}[KEY])
    except (KeyError, ValueError, RecursionError):
        raise BundleError(
            f"{name} is not an ONNX file of this library: write one with 'ecapa-jax export BUNDLE --to onnx -o FILE'"
        ) from None
    again = "export the model again"
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise BundleError(f"{name} has metadata of another schema, but this version reads schema {SCHEMA}: {again}")
    try:
        config = from_dict(ModelConfig, about["config"], "config")
        scoring = scoring_from_dict(about["scoring"])
        mean, cohort = _decode_arrays(about["arrays"], config.ecapa.embedding_dim)
        return OnnxFile(
            content=content,
            takes=str(about["input"]),
            precision=str(about["precision"]),
            config=config,
            scoring=scoring,
            embedding_mean=mean,
            cohort=cohort,
            provenance=dict(about["provenance"]),
            card=model.doc_string,
        )
    except ConfigError as error:
        raise BundleError(f"{name}: {error}: {again}") from error
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise BundleError(f"{name} has damaged metadata ({error!r}): {again}") from error


def _parse_file(name: str) -> tuple[onnx.ModelProto, bytes]:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    try:
        size = os.path.getsize(name)
        if size > MAX_BYTES:
            raise BundleError(f"{name} has {size:,} bytes, more than an ONNX file can have")
        content = Path(name).read_bytes()
    except OSError as error:
        raise BundleError(f"{name} can't be read: {error.strerror or error}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise BundleError(f"{name} is damaged or not an ONNX file: {error}") from error
    if not model.graph.node:
        raise BundleError(f"{name} is damaged or not an ONNX file: it has no graph")
    return model, content


def _check_whole(name: str, model: onnx.ModelProto) -> None:
    from onnx import TensorProto

    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in _find_tensors(model)):
        raise BundleError(
            f"{name} keeps weights in other files, which this library does not read: save the model as one file"
        )
    nodes = [node for graph in _find_graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    foreign = {node.domain for node in nodes} - DOMAINS - {function.domain for function in model.functions}
    if foreign:
        raise BundleError(
            f"{name} uses operators of {min(foreign)!r}, which are not part of ONNX, so it was not loaded"
        )


def _find_graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Finds a graph and all graphs inside its nodes."""
    inner = [
        part
        for node in graph.node
        for attribute in node.attribute
        for part in ([attribute.g] if attribute.HasField("g") else list(attribute.graphs))
    ]
    return [graph, *(found for part in inner for found in _find_graphs(part))]


def _find_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    graphs = _find_graphs(model.graph)
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    found = [tensor for graph in graphs for tensor in graph.initializer]
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        found += [attribute.t] if attribute.HasField("t") else list(attribute.tensors)
    return found


def _encode_array(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def _decode_array(text: str, columns: int) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("an array of the scoring has values that are not finite")
    return values.reshape(-1, columns)


def _decode_arrays(stored: dict[str, Any], columns: int) -> tuple[np.ndarray | None, Cohort | None]:
    mean, cohort = stored.get("embedding_mean"), stored.get("cohort")
    row = None if mean is None else _decode_array(mean, columns)[0]
    if cohort is None:
        return row, None
    rows, speakers = _decode_array(cohort["embeddings"], columns), tuple(map(str, cohort["speakers"]))
    if len(rows) != len(speakers):
        raise ValueError("the cohort does not have one speaker for each row")
    return row, Cohort(rows, speakers)
