"""Runs exported models in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

Feed = Mapping[str, np.ndarray]


def onnx_runtime(model: onnx.ModelProto, feed: Feed) -> np.ndarray:
    """Returns the first output of ONNX Runtime, with logging disabled."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feed))[0]


def openvino(model: onnx.ModelProto, feed: Feed) -> np.ndarray:
    """Returns the first output of OpenVINO in float32."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(model.SerializeToString())
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(dict(feed))[0])


RUNTIMES = {"ONNX Runtime": onnx_runtime, "OpenVINO": openvino}
