"""Reads the weights of an ONNX file without the package onnx and without running anything.

An ONNX file is a protocol buffer. The reader follows only the fields that lead to tensors: the graph, its initializers,
and the attributes of its nodes, which may contain tensors and further graphs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ecapa_jax.convert.readers.arrays import one_line_errors
from ecapa_jax.errors import ConversionError

_MAX_BYTES = 1 << 30
_MAX_DEPTH = 16  # graphs within graphs
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
}

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_OUTPUT, _NODE_ATTRIBUTE = 2, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 4, 8, 9

Field = tuple[int, int | memoryview]


def read_onnx(path: str | os.PathLike[str]) -> list[tuple[str, np.ndarray]]:
    """Reads all tensors of an ONNX file, including those in the branches of conditions.

    Args:
      path: the file.

    Returns:
      Name and read-only array of each tensor; a name may occur several times. A constant without a name has the name of
      the output of its node. Tensors of types that weights never have are left out.

    Raises:
      ConversionError: the file can't be read, is damaged, or is not an ONNX file.
    """
    with one_line_errors(str(path)):
        if os.path.getsize(path) > _MAX_BYTES:
            raise ConversionError(f"it is over {_MAX_BYTES >> 30} GiB, too large for a speech detector")
        content = memoryview(Path(path).read_bytes())
        graphs = [value for number, value in _read_fields(content) if number == _MODEL_GRAPH]
        if len(graphs) != 1:
            raise ConversionError("it is not an ONNX model (it has no graph); download it again")
        return list(_find_tensors(_read_message(graphs[0]), 0))


def _find_tensors(graph: memoryview, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    if depth > _MAX_DEPTH:
        raise ConversionError("its graphs are nested too deeply for a model")
    for number, value in _read_fields(graph):
        if number == _GRAPH_INITIALIZER:
            yield from _read_tensor(_read_message(value), "")
        elif number == _GRAPH_NODE:
            yield from _read_node(_read_message(value), depth)


def _read_node(node: memoryview, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    fields = list(_read_fields(node))
    outputs = [bytes(_read_message(value)).decode() for number, value in fields if number == _NODE_OUTPUT]
    for number, attribute in fields:
        if number != _NODE_ATTRIBUTE:
            continue
        for inner, value in _read_fields(_read_message(attribute)):
            if inner == _ATTRIBUTE_TENSOR:
                yield from _read_tensor(_read_message(value), outputs[0] if outputs else "")
            elif inner == _ATTRIBUTE_GRAPH:
                yield from _find_tensors(_read_message(value), depth + 1)


def _read_tensor(tensor: memoryview, otherwise: str) -> Iterator[tuple[str, np.ndarray]]:
    dims: list[int] = []
    name, dtype, raw, floats = otherwise, 0, None, b""
    for number, value in _read_fields(tensor):
        if number == _TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else _read_varints(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            dtype = value
        elif number == _TENSOR_NAME:
            name = bytes(_read_message(value)).decode() or otherwise
        elif number == _TENSOR_RAW:
            raw = _read_message(value)
        elif number == _TENSOR_FLOATS:
            floats += bytes(_read_message(value))
    if dtype not in _DTYPES or (raw is None and dtype != 1):
        return
    data, kind = (floats if raw is None else raw), _DTYPES[dtype]
    if len(data) != math.prod(dims) * kind.itemsize:
        raise ConversionError(f"tensor {name[:100]!a} has {len(data)} bytes for shape {tuple(dims)}; it is damaged")
    yield name, np.frombuffer(data, dtype=kind).reshape(dims)


def _read_fields(message: memoryview) -> Iterator[Field]:
    """Yields the number and the value of each field; a value is an integer or bytes."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ConversionError("it is damaged or not an ONNX model; download it again")
        if at + size > len(message):
            raise ConversionError("it is cut off; download it again")
        yield number, message[at : at + size]
        at += size


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """Reads an integer of up to 64 bits; also returns the position of the next field."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ConversionError("it is cut off; download it again")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ConversionError("it is damaged or not an ONNX model; download it again")


def _read_varints(packed: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        values.append(value)
    return values


def _read_message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ConversionError("it is damaged or not an ONNX model; download it again")
    return value
