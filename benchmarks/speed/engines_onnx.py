"""Engines that run the exported network on torchaudio's features: ONNX Runtime and OpenVINO.

Each engine is created for a fixed shape, because fixed shapes are fastest; jit also compiles for a fixed shape.
"""

from __future__ import annotations

import functools

import numpy as np

from benchmarks.speed.engines import Call, Engine
from benchmarks.speed.model import Model, cores


def onnx_runtime(model: Model) -> Engine:
    """Returns ONNX Runtime's CPU provider in float32."""
    import onnxruntime

    @functools.lru_cache(maxsize=1)
    def session(batch: int, n_frames: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        options.add_free_dimension_override_by_name("batch", batch)
        options.add_free_dimension_override_by_name("time", n_frames)
        # Spinning threads would use the CPU while the next engine runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(str(model.onnx), options, providers=["CPUExecutionProvider"])

    def network(features: np.ndarray) -> np.ndarray:
        (embedding,) = session(*features.shape[:2]).run(None, {"features": features})
        return embedding.reshape(len(features), -1)

    return _engine(network)


def openvino(model: Model, precision: str) -> Engine:
    """Returns OpenVINO's CPU plugin; `precision` is its hint, f32 or bf16."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": cores(), "PERFORMANCE_HINT": "LATENCY"}

    @functools.lru_cache(maxsize=1)
    def request(batch: int, n_frames: int) -> openvino.InferRequest:
        graph = core.read_model(model.onnx)
        graph.reshape([batch, n_frames, 80])
        return core.compile_model(graph, "CPU", settings).create_infer_request()

    def network(features: np.ndarray) -> np.ndarray:
        embedding = request(*features.shape[:2]).infer([features], share_inputs=True)[0]
        return np.array(embedding).reshape(len(features), -1)

    return _engine(network)


def _engine(network: Call) -> Engine:
    def embed(waveforms: np.ndarray) -> np.ndarray:
        import torch

        from benchmarks.speed.engines_torch import kaldi_features

        with torch.inference_mode():
            return network(kaldi_features(waveforms))

    return Engine(network=network, embed=embed)
