"""Reads safetensors files with every dtype that a speaker model may have."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from ecapa_jax.convert.readers.arrays import check_bool, one_line_errors
from ecapa_jax.convert.readers.pickle_machine import show
from ecapa_jax.errors import ConversionError

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read_safetensors(file: io.BufferedReader | io.BytesIO, name: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a safetensors file as read-only arrays, by name.

    Raises:
      ConversionError: the file is damaged, or holds a dtype that no speaker model needs.
    """
    file.seek(0)
    with one_line_errors(name):
        try:
            # safetensors.numpy does not know bfloat16 before version 0.8.
            entries = safetensors.deserialize(file.read())
        except safetensors.SafetensorError as error:
            raise ConversionError(
                f"it is a damaged safetensors file ({show(str(error))}); download it again"
            ) from error
        return {key: _make_array(key, entry) for key, entry in sorted(entries, key=lambda item: item[0])}


def _make_array(key: str, entry: Mapping[str, Any]) -> np.ndarray:
    dtype = _DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise ConversionError(f"{show(key)} is of type {entry['dtype']}, which no speaker model needs; save it as F32")
    array = check_bool(np.ndarray(entry["shape"], dtype, buffer=entry["data"]))
    array.flags.writeable = False
    return array
