"""The engines by name. A process imports only the engines that it measures."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable

import numpy as np

from benchmarks.speed.model import Model

Call = Callable[[np.ndarray], np.ndarray]
KINDS = {"embed": "waveform to embedding", "network": "network alone"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """The functions that are timed, from NumPy to NumPy.

    Attributes:
      network: a function from features [B, T, 80] to [B, D], or None.
      embed: a function from waveforms [B, S] to [B, D], or None.
      family: the family whose front end `embed` has.
      own_weights: whether the engine has other weights, so that its embeddings are not compared.
    """

    network: Call | None = None
    embed: Call | None = None
    family: str = "3dspeaker"
    own_weights: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """The module of an engine, and how reports show it.

    Attributes:
      title: the title in tables.
      dtype: the dtype of its products, which determines the peak to compare with.
      module, maker: a function of `benchmarks.speed.<module>` that takes the model and `arguments`.
    """

    title: str
    dtype: str
    module: str
    maker: str
    arguments: tuple[str, ...] = ()


OURS, EAGER = "ours", "torch"
"""The two engines with which the others are compared."""

ENGINES = {
    OURS: Entry("ecapa-jax float32", "float32", "engines_jax", "ours", ("float32",)),
    "ours-bf16": Entry("ecapa-jax bfloat16", "bfloat16", "engines_jax", "ours", ("bfloat16",)),
    EAGER: Entry("3D-Speaker, PyTorch eager", "float32", "engines_torch", "three_d_speaker", ("eager",)),
    "torch-compile": Entry("3D-Speaker, torch.compile", "float32", "engines_torch", "three_d_speaker", ("compile",)),
    "torch-bf16": Entry("3D-Speaker, PyTorch bfloat16", "bfloat16", "engines_torch", "three_d_speaker", ("bfloat16",)),
    "speechbrain": Entry("SpeechBrain, PyTorch eager", "float32", "engines_torch", "speechbrain"),
    "onnxruntime": Entry("ONNX Runtime float32", "float32", "engines_onnx", "onnx_runtime"),
    "openvino": Entry("OpenVINO float32", "float32", "engines_onnx", "openvino", ("f32",)),
    "openvino-bf16": Entry("OpenVINO bfloat16", "bfloat16", "engines_onnx", "openvino", ("bf16",)),
    "flaxspeaker": Entry("FlaxSpeaker's ECAPA", "float32", "engines_jax", "flaxspeaker"),
}


def make(name: str, model: Model) -> Engine:
    """Loads an engine with the model's weights.

    Raises:
      ImportError: if the engine is not installed.
    """
    entry = ENGINES[name]
    module = importlib.import_module(f"benchmarks.speed.{entry.module}")
    return getattr(module, entry.maker)(model, *entry.arguments)
