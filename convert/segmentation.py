"""Converts a checkpoint of pyannote's segmentation-3.0 to the weights of `ecapa_jax.diarization.segmentation`.

    python -m ecapa_jax.convert.segmentation CHECKPOINT OUT.safetensors [--float16]

CHECKPOINT is a PyTorch file with the state dict of pyannote/segmentation-3.0, either alone or with hyperparameters and
specifications as on Hugging Face, or a folder with such a `pytorch_model.bin`. The converter runs nothing in the file.
`ecapa-jax convert` does the same in float32.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ecapa_jax.convert.readers.checkpoint import read_checkpoint
from ecapa_jax.errors import ConversionError

_RATE = 16000
_LOWEST, _NARROWEST = 50.0, 50.0  # lowest edge and smallest width of a band, in Hz
_LAYERS, _HIDDEN = 4, 128
_MAX_BYTES = 64 << 20  # the network has 5.9 MB
_MARK = b"sincnet.conv1d.0.filterbank.low_hz_"

LICENCE = "MIT, Copyright (c) 2023 CNRS"


def find_segmentation(source: str | os.PathLike[str]) -> Path | None:
    """Finds the file of pyannote's segmentation network, which its size and the names in it identify.

    Args:
      source: a checkpoint, or a folder with a `pytorch_model.bin`.

    Returns:
      The file, or None if the source is something else.
    """
    path = Path(source)
    if path.is_dir():
        path /= "pytorch_model.bin"
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return None
    return path if _MARK in path.read_bytes() else None


def read_segmentation(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the weights of a checkpoint as float32, with the names that `segmentation.nest_weights` accepts.

    Raises:
      ConversionError: the file can't be read, or holds another network.
    """
    content = read_checkpoint(path).content
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    arrays = {name: np.asarray(array, np.float32) for name, array in state.items() if isinstance(array, np.ndarray)}
    try:
        return _convert_tensors(arrays)
    except (KeyError, ValueError) as error:
        raise ConversionError(
            f"{path}: it is not pyannote's segmentation-3.0 ({error} is missing or has another shape)"
        ) from error


def _convert_tensors(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    bank = [state[f"sincnet.conv1d.0.filterbank.{name}"] for name in ("low_hz_", "band_hz_", "n_", "window_")]
    out = {"sinc.kernel": sinc_filters(*bank)}
    norms = {"wave_norm": "wav_norm1d", "norm.0": "norm1d.0", "norm.1": "norm1d.1", "norm.2": "norm1d.2"}
    for ours, theirs in norms.items():
        out[f"{ours}.scale"] = state[f"sincnet.{theirs}.weight"]
        out[f"{ours}.bias"] = state[f"sincnet.{theirs}.bias"]
    for index in range(2):
        out[f"conv.{index}.kernel"] = state[f"sincnet.conv1d.{index + 1}.weight"].transpose(2, 1, 0)
        out[f"conv.{index}.bias"] = state[f"sincnet.conv1d.{index + 1}.bias"]
    for layer in range(_LAYERS):
        directions = [f"l{layer}", f"l{layer}_reverse"]
        out[f"lstm.{layer}.input"] = np.stack([state[f"lstm.weight_ih_{name}"].T for name in directions])
        out[f"lstm.{layer}.hidden"] = np.stack([state[f"lstm.weight_hh_{name}"].T for name in directions])
        biases = [state[f"lstm.bias_ih_{name}"] + state[f"lstm.bias_hh_{name}"] for name in directions]
        out[f"lstm.{layer}.bias"] = np.stack(biases)
    for ours, theirs in {"linear.0": "linear.0", "linear.1": "linear.1", "classifier": "classifier"}.items():
        out[f"{ours}.kernel"] = state[f"{theirs}.weight"].T
        out[f"{ours}.bias"] = state[f"{theirs}.bias"]
    if out["lstm.3.hidden"].shape != (2, _HIDDEN, 4 * _HIDDEN) or out["classifier.kernel"].shape != (_HIDDEN, 7):
        raise ValueError("lstm or classifier")
    return out


def sinc_filters(
    low: Float32[np.ndarray, "filters 1"],
    band: Float32[np.ndarray, "filters 1"],
    time: Float32[np.ndarray, "1 half"],
    window: Float32[np.ndarray, " half"],
) -> Float32[np.ndarray, "taps channels"]:
    """Computes the even and then the odd band-pass filters between learned frequencies, in float32 like the original.

    Args:
      low: lower edge of each band above 50 Hz; its sign is ignored.
      band: width of each band above 50 Hz; its sign is ignored.
      time: times of the first half of the taps in seconds, times 2 pi; all are negative.
      window: first half of a Hamming window.

    Reference: Ravanelli and Bengio 2018, "Speaker Recognition from Raw Waveform with SincNet"; Pariente et al. 2020,
    "Filterbank design for end-to-end speech separation" (the odd half).
    """
    lower = _LOWEST + np.abs(low)
    upper = np.clip(lower + _NARROWEST + np.abs(band), _LOWEST, np.float32(_RATE / 2))
    even = (np.sin(upper * time) - np.sin(lower * time)) / (time / 2) * window
    odd = (np.cos(lower * time) - np.cos(upper * time)) / (time / 2) * window
    width = 2 * (upper - lower)
    evens = np.concatenate([even, width, even[:, ::-1]], axis=1)
    odds = np.concatenate([odd, np.zeros_like(width), -odd[:, ::-1]], axis=1)
    return np.concatenate([evens / width, odds / width]).T


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts a checkpoint to a file like the packaged one."""
    from safetensors.numpy import save

    parser = argparse.ArgumentParser(prog="python -m ecapa_jax.convert.segmentation", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--float16", action="store_true", help="store the weights in float16, which halves the size")
    options = parser.parse_args(arguments)
    dtype = np.float16 if options.float16 else np.float32
    weights = {
        name: np.ascontiguousarray(array, dtype) for name, array in read_segmentation(options.checkpoint).items()
    }
    Path(options.out).write_bytes(save(weights))


if __name__ == "__main__":
    main()
