"""Builds an ONNX graph node by node; scopes give the nodes the names of the modules of `ecapa_jax.nn`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from jaxtyping import Shaped
from onnx import helper, numpy_helper

OPSET = 17
"""Version of the operators, which ONNX Runtime supports from 1.12 on and OpenVINO from 2023 on."""

IR_VERSION = 8
"""Version of the file format that belongs to the opset."""


class Graph:
    """Nodes and weights of a graph under construction. Methods take and return the names of values.

    Local functions of ONNX would show one node per block, but OpenVINO 2026.4 does not support them and a function
    can't contain weights. Blocks are therefore scopes, as in `block_0/res2/chunk_1/conv`.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names: set[str] = set()
        self._scope: list[str] = []

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefixes the names of all nodes and weights that the body adds."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node with one output.

        Args:
          op_type: operator of the default domain.
          *inputs: names of values; "" leaves an optional input out.
          name: name of the node and its output within the scope; "" uses the name of the operator.
          **attributes: attributes of the operator.

        Returns:
          The name of the output.
        """
        full = self._make_unique("/".join([*self._scope, name or _to_snake_case(op_type)]))
        self._nodes.append(helper.make_node(op_type, list(inputs), [full], name=full, **attributes))
        return full

    def split(self, x: str, parts: int, axis: int, name: str = "split") -> list[str]:
        """Splits a value into equal parts and returns their names."""
        full = self._make_unique("/".join([*self._scope, name]))
        outputs = [f"{full}_{part}" for part in range(parts)]
        self._nodes.append(helper.make_node("Split", [x], outputs, name=full, axis=axis))
        return outputs

    def weight(self, name: str, values: Shaped[np.ndarray, ...]) -> str:
        """Adds an array of weights with a name within the scope, and converts float64 to float32."""
        full = self._make_unique("/".join([*self._scope, name]))
        dtype = np.float32 if values.dtype == np.float64 else values.dtype
        self._weights[full] = numpy_helper.from_array(np.ascontiguousarray(values, dtype), full)
        return full

    def constant(self, values: int | float | Sequence[int] | np.ndarray) -> str:
        """Returns a small constant, which is stored once. Whole numbers become int64, and other numbers float32."""
        array = np.asarray(values)
        array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._make_unique("constants/" + re.sub(r"[^\w.+-]+", "_", str(array.tolist())).strip("_"))
            self._weights[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def size(self, x: str, axis: int) -> str:
        """Returns the size of a value along an axis, as an int64 array of one number."""
        return self.op("Shape", x, name="size", start=axis, end=axis + 1)

    def range(self, size: str) -> str:
        """Returns the int64 numbers from 0 to `size` - 1."""
        zero = self.constant(np.array(0))
        return self.op("Range", zero, self.op("Squeeze", size), self.constant(np.array(1)))

    def slice(self, x: str, start: str, end: str, axis: int) -> str:
        """Slices a value along one axis; `start` and `end` name arrays of one number."""
        return self.op("Slice", x, start, end, self.constant([axis]))

    def sum(self, x: str, axis: int, name: str = "sum") -> str:
        """Sums along an axis and keeps it."""
        return self.op("ReduceSum", x, self.constant([axis]), name=name, keepdims=1)

    def make_model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], *, name: str, text: str
    ) -> onnx.ModelProto:
        """Makes the finished model and checks it.

        Args:
          inputs, outputs: inputs and outputs of the model, with the names of values of the graph.
          name: name of the graph.
          text: `doc_string` of the model, which viewers show.
        """
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._weights.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="ecapa-jax",
            doc_string=text,
        )
        onnx.checker.check_model(model)
        return model

    def _make_unique(self, name: str) -> str:
        found, number = name, 1
        while found in self._names:
            found, number = f"{name}_{number}", number + 1
        self._names.add(found)
        return found


def _to_snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
