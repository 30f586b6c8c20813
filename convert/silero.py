"""Converts the ONNX file of silero-vad to the weights of `ecapa_jax.vad`.

The wheel of silero-vad contains several exports of one network. In `silero_vad.onnx` and `silero_vad_16k_op15.onnx` the
weights have names; the safetensors file beside them belongs to another network.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ecapa_jax.convert.onnx_reader import read_onnx
from ecapa_jax.errors import ConversionError
from ecapa_jax.vad.weights import SHAPES, Weights

LICENCE = "MIT, Copyright (c) 2020-present Silero Team"

_MAX_BYTES = 64 << 20  # the largest file in the wheel has 3 MB

_SOURCES: dict[str, tuple[str, tuple[int, ...]]] = {
    "transform": ("stft.forward_basis_buffer", (258, 1, 256)),
    "lstm_input": ("decoder.rnn.weight_ih", (512, 128)),
    "lstm_input_bias": ("decoder.rnn.bias_ih", (512,)),
    "lstm_state": ("decoder.rnn.weight_hh", (512, 128)),
    "lstm_state_bias": ("decoder.rnn.bias_hh", (512,)),
    "output": ("decoder.decoder.2.weight", (1, 128, 1)),
    "output_bias": ("decoder.decoder.2.bias", (1,)),
    **{
        f"convolution_{layer}": (f"encoder.{layer}.reparam_conv.weight", SHAPES[f"convolution_{layer}"][::-1])
        for layer in range(4)
    },
    **{
        f"convolution_{layer}_bias": (f"encoder.{layer}.reparam_conv.bias", SHAPES[f"convolution_{layer}_bias"])
        for layer in range(4)
    },
}
"""Name and shape of every array in the ONNX file."""


def holds_speech_detector(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an ONNX export of silero-vad, according to its name, its size and the names in it."""
    path = Path(path)
    if path.suffix.lower() != ".onnx" or not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return False
    return _SOURCES["transform"][0].encode() in path.read_bytes()


def read_silero(path: str | os.PathLike[str]) -> Weights:
    """Reads the 16 kHz network from an ONNX file of silero-vad.

    Args:
      path: `silero_vad.onnx` or `silero_vad_16k_op15.onnx` of the wheel.

    Returns:
      Arrays with the names and shapes of `ecapa_jax.vad.weights.SHAPES`.

    Raises:
      ConversionError: the file can't be read, or contains another network.
    """
    tensors = read_onnx(path)
    weights: Weights = {}
    for target, (name, shape) in _SOURCES.items():
        # The branches for 8 kHz and for 16 kHz contain the same names, and most of their shapes are equal, too.
        found = [
            array
            for place, array in _select_16_khz(tensors)
            if (place == name or place.endswith(f".{name}")) and array.dtype == np.float32 and array.shape == shape
        ]
        if len(found) != 1:
            raise ConversionError(
                f"{path}: it has no {name} {list(shape)} in float32, so it is not silero-vad's network of version 5 or "
                "6; give silero_vad.onnx of the silero-vad wheel"
            )
        weights[target] = np.ascontiguousarray(found[0].T).reshape(SHAPES[target])
    return weights


def _select_16_khz(tensors: list[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """Selects the tensors from the transform for 16 kHz up to the next transform."""
    name, shape = _SOURCES["transform"]
    transforms = [index for index, (place, _) in enumerate(tensors) if place == name or place.endswith(f".{name}")]
    for index, end in itertools.pairwise([*transforms, len(tensors)]):
        if tensors[index][1].shape == shape:
            return tensors[index:end]
    return []


def write_weights(
    weights: Mapping[str, Any], source: str | os.PathLike[str], path: Path, licence: str = LICENCE
) -> None:
    """Writes the weights of a detector for `load_weights` of `ecapa_jax.vad` and of `ecapa_jax.diarization`.

    Args:
      weights: result of `read_silero`.
      source: original file, whose name and digest are written too.
      path: the file to write.
      licence: licence of the weights, which is written too.
    """
    from safetensors.numpy import save

    source = Path(source)
    origin = {
        "source": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "licence": licence,
    }
    path.write_bytes(save({name: np.array(array, order="C") for name, array in weights.items()}, metadata=origin))
