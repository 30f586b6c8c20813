"""The weights of the speech detector: 309 633 numbers of silero-vad 6, in channels-last order."""

from __future__ import annotations

import functools
import json
import os
import struct
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float32

from ecapa_jax.errors import BundleError

AnyArray = Array | np.ndarray
Weights = dict[str, Float32[AnyArray, "..."]]

PACKAGED = "silero_16k.safetensors"

SHAPES: dict[str, tuple[int, ...]] = {
    "transform": (256, 258),
    "convolution_0": (3, 129, 128),
    "convolution_0_bias": (128,),
    "convolution_1": (3, 128, 64),
    "convolution_1_bias": (64,),
    "convolution_2": (3, 64, 64),
    "convolution_2_bias": (64,),
    "convolution_3": (3, 64, 128),
    "convolution_3_bias": (128,),
    "lstm_input": (128, 512),
    "lstm_input_bias": (512,),
    "lstm_state": (128, 512),
    "lstm_state_bias": (512,),
    "output": (128,),
    "output_bias": (),
}
"""Names and shapes of the arrays: [taps, in, out] for convolutions, [in, out] for the others. The columns of the LSTM
are input gate, forget gate, cell and output gate; the columns of the transform are 129 cosines and 129 sines."""


@functools.cache
def packaged_weights() -> Weights:
    """Returns the weights that are packaged with this library; read-only."""
    return load_weights(Path(str(resources.files("ecapa_jax.vad") / PACKAGED)))


def load_weights(path: str | os.PathLike[str]) -> Weights:
    """Reads the weights of a speech detector from a file that `ecapa-jax convert` wrote.

    The file has the format of safetensors. It is parsed here because importing the package safetensors takes longer
    than reading this file.

    Args:
      path: the file.

    Returns:
      Arrays with the names and shapes of `SHAPES`, read-only.

    Raises:
      BundleError: the file does not exist, is damaged, or belongs to another network.
    """
    try:
        content = Path(path).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        data = content[8 + length :]
        found = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        if found != {name: ("F32", shape) for name, shape in SHAPES.items()}:
            raise BundleError(
                f"{path}: holds other arrays than those of a speech detector; convert silero_vad.onnx again"
            )
        weights: Weights = {
            name: np.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(SHAPES[name])
            for name, entry in header.items()
        }
    except OSError as error:
        raise BundleError(
            f"{path}: can't be read ({error.strerror or error}); give the file of a speech detector"
        ) from error
    except (struct.error, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path}: is damaged or not a safetensors file; convert silero_vad.onnx again") from error
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise BundleError(f"{path}: holds numbers that are not finite; convert silero_vad.onnx again")
    return weights
