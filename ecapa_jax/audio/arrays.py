"""Takes arrays as recordings, and refuses arrays whose shape, dtype or amplitude is not that of a recording."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ecapa_jax.audio.decoding import check_rate
from ecapa_jax.errors import AudioError, one_line

MAX_CHANNELS = 32
_INTEGERS = {"i1": (0, 2.0**7), "u1": (128, 2.0**7), "i2": (0, 2.0**15), "i4": (0, 2.0**31)}  # offset, divisor
_SIXTEEN_BITS = 2**16  # the sum of two 16-bit channels reaches it too


def is_dataset_row(source: object) -> bool:
    """Whether the source is a row of Hugging Face datasets: `array` and `sampling_rate`, or `bytes` and `path`."""
    return isinstance(source, Mapping) and any(name in source for name in ("array", "bytes", "path"))


def unpack_dataset_row(row: Mapping[str, Any], sample_rate: Any) -> tuple[Any, Any]:
    """Returns the recording in a row of a dataset, and its sample rate.

    Args:
      row: a row that `is_dataset_row` accepts.
      sample_rate: sample rate that the caller gives; None means the sample rate of the row.

    Raises:
      AudioError: the row holds no recording, or an array without a sample rate, or its rate differs from the caller's.
    """
    if row.get("array") is None:
        source = row.get("bytes") if row.get("bytes") is not None else row.get("path")
        if source is None:
            raise AudioError("dict: array, bytes and path are all empty; give one of them")
        return source, sample_rate
    rate = row.get("sampling_rate")
    if rate is None and sample_rate is None:
        raise AudioError("dict: sampling_rate is missing; give {'array': samples, 'sampling_rate': 16000}")
    given: Any = rate if sample_rate is None else sample_rate
    if rate is not None and check_rate(rate, "dict") != check_rate(given, "dict"):
        raise AudioError(f"dict: sampling_rate is {rate}, but sample_rate={sample_rate} was given; leave one out")
    return row["array"], given


def as_columns(source: Any, name: str) -> Shaped[np.ndarray, "samples channels"]:
    """Returns the samples of an array or tensor as [samples, channels], with their values and dtype unchanged.

    Raises:
      AudioError: NumPy can't read the array, or its shape, dtype or amplitude is not that of a recording.
    """
    array = _as_numpy(source, name)
    if array.ndim not in (1, 2):
        raise AudioError(
            f"{name}: shape {array.shape}; give [samples] or [samples, channels], a batch of recordings as list(array)"
        )
    if array.size == 0:
        raise AudioError(f"{name}: shape {array.shape} holds no samples; give some")
    if array.ndim == 2:
        array = _arrange_columns(array, name)
    if array.dtype.str[1:] not in _INTEGERS and not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"{name}: dtype {array.dtype}; give int8, int16, int32, uint8 or a float dtype of NumPy")
    _check_amplitude(array, name)
    return array.reshape(len(array), -1)


def to_floats(array: Shaped[np.ndarray, "samples channels"]) -> Shaped[np.ndarray, "samples channels"]:
    """Divides integers by the full range of their dtype; returns floats as they are."""
    if array.dtype.str[1:] not in _INTEGERS:
        return array
    offset, divisor = _INTEGERS[array.dtype.str[1:]]
    return (array.astype(np.float32) - np.float32(offset)) / np.float32(divisor)


def _as_numpy(source: Any, name: str) -> np.ndarray:
    # A PyTorch tensor that requires a gradient or is on another device must be detached and copied first.
    if type(source).__module__.partition(".")[0] == "torch" and hasattr(source, "detach"):
        source = source.detach().cpu()
        if str(source.dtype) == "torch.bfloat16":
            source = source.float()
    try:
        return np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(f"{name}: NumPy can't read it ({one_line(error)}); give a NumPy array") from error


def _arrange_columns(array: np.ndarray, name: str) -> np.ndarray:
    """Returns the array as [samples, channels]; a single row of samples is a recording with one channel."""
    rows, columns = array.shape
    if rows == 1:
        return array.T
    batch = "a batch of recordings is given as list(array)"
    if columns > MAX_CHANNELS and rows > MAX_CHANNELS:
        raise AudioError(f"{name}: shape {array.shape} has more than {MAX_CHANNELS} channels; {batch}")
    if rows < columns:
        raise AudioError(
            f"{name}: shape {array.shape} is not [samples, channels]; {batch}, the channels of one recording "
            f"are put last (transpose it)"
        )
    return array


def _check_amplitude(array: np.ndarray, name: str) -> None:
    """Refuses samples whose values show that they were not scaled to their dtype."""
    if array.dtype.str[1:] == "i4":
        peak = max(abs(int(array.min())), abs(int(array.max())))
        if 0 < peak <= _SIXTEEN_BITS:
            raise AudioError(
                f"{name}: {array.dtype} samples reach only {peak}, so they look like unscaled 16-bit samples; "
                "give them as int16 or divide by 32768"
            )
    elif np.issubdtype(array.dtype, np.floating):
        highest = max(-float(array.min()), float(array.max()))
        # A wrong gain would not leave only whole numbers.
        if np.isfinite(highest) and highest > 1.5 and all((part == np.rint(part)).all() for part in _split(array)):
            raise AudioError(
                f"{name}: all samples are whole numbers up to {highest:g}, so they look like unscaled integers; "
                "divide by 32768 if they have 16 bits"
            )


def _split(array: np.ndarray) -> list[np.ndarray]:
    return [array[start : start + (1 << 20)] for start in range(0, len(array), 1 << 20)]
