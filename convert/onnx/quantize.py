"""Quantises an exported ONNX model: int8 in the convolutions over time, or float16 weights."""

from __future__ import annotations

import itertools
import logging
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ecapa_jax.errors import ConfigError

IN_FLOAT32 = re.compile(r"(^|/)(front_end|se|pooling|projection)/")
"""Modules whose convolutions stay in float32, because they run once per utterance or determine weights of frames."""

Feed = dict[str, np.ndarray]


def to_int8(model: onnx.ModelProto, calibration: Iterable[Feed]) -> onnx.ModelProto:
    """Quantises convolutions to int8: the weights per channel, and the activations by the ranges found in calibration.

    ONNX Runtime quantises statically. It puts QuantizeLinear and DequantizeLinear around each convolution of the stem,
    the blocks and the MFA. The front end, squeeze-excitation, statistics and pooling stay in float32.

    Args:
      model: result of `export_onnx`.
      calibration: inputs of the model for each recording.

    Raises:
      ConfigError: there is no recording to calibrate with.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    feeds = iter(calibration)
    first = next(feeds, None)
    if first is None:
        raise ConfigError("there is no recording to calibrate with: pass a folder of speech with --calibration")

    class Reader(CalibrationDataReader):
        """Reader that returns the inputs of one recording after the other."""

        def __init__(self) -> None:
            self._feeds = itertools.chain([first], feeds)

        def get_next(self) -> Feed | None:
            """Returns the inputs of the next recording, or None after the last recording."""
            return next(self._feeds, None)

    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        logging.disable(logging.WARNING)  # it recommends a pre-processing step that would change nothing
        try:
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[name for name in convolutions if IN_FLOAT32.search(name)],
            )
        finally:
            logging.disable(logging.NOTSET)
        found = onnx.load(target)
    _store_in_int8(found)
    helper.set_model_props(found, {prop.key: prop.value for prop in model.metadata_props})
    found.doc_string = model.doc_string
    found.producer_name = model.producer_name
    return found


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores kernels in float16, which halves the size; the model casts them to float32 when it loads and runs as fast.

    Only the kernels of convolutions are in float16. The matrices of the front end, biases and normalisations stay in
    float32.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    before = []
    for tensor in _find_kernels(found):
        name = tensor.name
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}/float16"))
        before.append(helper.make_node("Cast", [f"{name}/float16"], [name], name=f"{name}/cast", to=TensorProto.FLOAT))
    _prepend(found, before)
    return found


def _store_in_int8(model: onnx.ModelProto) -> None:
    """Stores the kernels of the convolutions that compute in float32 as int8 with a factor for each output channel.

    A cast and a product restore each kernel. Runtimes compute both once when they load the model, whereas they would
    compute DequantizeLinear at every call.
    """
    before = []
    for tensor in _find_kernels(model):
        name, values = tensor.name, numpy_helper.to_array(tensor)
        peak = np.abs(values).max(axis=(1, 2), keepdims=True)
        scale = np.where(peak > 0, peak, 1).astype(np.float32) / np.float32(127)
        tensor.CopyFrom(numpy_helper.from_array(np.round(values / scale).astype(np.int8), f"{name}/int8"))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
        cast = helper.make_node("Cast", [f"{name}/int8"], [f"{name}/cast"], name=f"{name}/cast", to=TensorProto.FLOAT)
        product = helper.make_node("Mul", [f"{name}/cast", f"{name}/scale"], [name], name=f"{name}/scaled")
        before += [cast, product]
    _prepend(model, before)


def _find_kernels(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Finds the float32 kernels of convolutions."""
    names = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    return [tensor for tensor in model.graph.initializer if tensor.name in names]


def _prepend(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
