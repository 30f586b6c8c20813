"""Reads checkpoint files of other libraries without PyTorch, after detecting their format from the first bytes."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from ecapa_jax.convert.readers.arrays import one_line_errors
from ecapa_jax.convert.readers.nemo_archive import CONFIG, open_nemo
from ecapa_jax.convert.readers.npz import read_npz
from ecapa_jax.convert.readers.pickle_machine import SCALARS, show
from ecapa_jax.convert.readers.safetensors_file import read_safetensors
from ecapa_jax.convert.readers.torch_legacy import read_torch_legacy
from ecapa_jax.convert.readers.torch_zip import read_torch_zip
from ecapa_jax.errors import ConversionError

_HEAD = 1024
_MAX_HEADER = 1 << 20  # safetensors allows 100 MB, which its parser turns into 2 GB; 231 tensors take 30 kB
_MAX_CLAIMED = 100_000_000
_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # LONG1 of 0x1950a86a20f9469cfc6c
_LEGACY_TAR = ("sys_info", "pickle", "storages", "tensors")
_GZIP = b"\x1f\x8b"
_KNOWN = "a PyTorch checkpoint, a .nemo, .safetensors or .npz file"
_ONNX_PRODUCERS = (b"pytorch", b"onnx")
_RESAVE = "save it again in a recent PyTorch with torch.save(torch.load(f, weights_only=True), f2)"

# Keys under which the tensors may be, in the order of the search.
_WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "teacher",
    "generator",
    "ema",
    "model_ema",
    "embedding_model",
)


Format: TypeAlias = Literal["torch-zip", "torch-legacy", "safetensors", "npz", "nemo"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Content of a checkpoint file.

    Attributes:
      path: the file.
      sha256: digest of the whole file, in hexadecimal.
      format: format of the container.
      content: dicts, lists, tuples and scalars, with a read-only array for each tensor; for safetensors and npz, a dict
        from names to arrays.
      inside: other files of the archive that families read, by name.
    """

    path: Path
    sha256: str
    format: Format
    content: object
    inside: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint of PyTorch or NeMo, a safetensors or an npz file, whatever its suffix, and runs nothing in it.

    Raises:
      ConversionError: the file is missing or damaged, has an unknown format, or holds more than plain weights.
    """
    path = Path(path)
    name = str(path)
    with one_line_errors(name):
        if path.is_dir():
            raise ConversionError("it is a directory; give the path of the checkpoint file in it")
        if path.suffix == ".pdparams":
            raise ConversionError(
                "it is a checkpoint of PaddlePaddle; PaddleSpeech's ECAPA-TDNN is a port of SpeechBrain's: convert the "
                "checkpoint of SpeechBrain"
            )
        if path.exists() and not path.is_file():
            raise ConversionError("it is not a regular file; copy it to a regular file first")
    with _open(path, name) as file:
        with one_line_errors(name):
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            kind = _detect_format(file)
        content, inside = _read(file, name, kind)
    return Checkpoint(path=path, sha256=sha256, format=kind, content=content, inside=inside)


def _read(file: io.BufferedReader | io.BytesIO, name: str, kind: Format) -> tuple[object, dict[str, bytes]]:
    if kind == "nemo":
        config, weights = open_nemo(file, name, compressed=_read_head(file).startswith(_GZIP))
        with one_line_errors(name):
            inner = _detect_format(weights)
            if inner not in ("torch-zip", "torch-legacy"):
                raise ConversionError(f"its weights are in the format {inner}, which NeMo does not write")
        return _read(weights, name, inner)[0], {CONFIG: config}
    readers: dict[Format, Callable[[Any, str], object]] = {
        "torch-zip": read_torch_zip,
        "torch-legacy": read_torch_legacy,
        "npz": read_npz,
        "safetensors": read_safetensors,
    }
    return readers[kind](file, name), {}


def find_tensors(
    content: object, key: str | None = None, fits: Callable[[Mapping[str, np.ndarray]], bool] = lambda arrays: True
) -> tuple[dict[str, np.ndarray], str]:
    """Finds the mapping of names to arrays in the content of a checkpoint, and the key under which it is.

    The function searches the top level (key "") and then the values of the usual wrapper keys. It takes the first
    mapping that has names as keys, at least one array, and otherwise only scalars and strings, which are left out. If
    none of these mappings fits, but exactly one dict under any other key fits, the function takes that dict.

    Args:
      content: content of the checkpoint.
      key: location of the mapping, as keys joined by dots, if several mappings fit.
      fits: function that returns whether a mapping is acceptable.

    Raises:
      ConversionError: there is no such mapping, or several fit under unusual keys.
    """
    if not isinstance(content, Mapping):
        raise ConversionError(f"the checkpoint holds a {type(content).__name__} instead of a dict of tensors")
    found = _find_flat_dicts(content)
    if key is not None:
        if key not in found:
            raise ConversionError(
                f"it has no dict of tensors under {show(key)!r}; it has dicts of tensors under: {_describe_keys(found)}"
            )
        return found[key], key
    usual = [wrapper for wrapper in ("", *_WRAPPERS) if wrapper in found]
    for wrapper in usual:
        if fits(found[wrapper]):
            return found[wrapper], wrapper
    fitting = [wrapper for wrapper in found if fits(found[wrapper])]
    if len(fitting) > 1:
        raise ConversionError(f"several dicts of tensors fit ({_describe_keys(fitting)}): choose one with --key")
    if fitting or usual:
        wrapper = (fitting or usual)[0]
        return found[wrapper], wrapper
    keys = ", ".join(show(str(key)) for key in list(content)[:8]) + (", ..." if len(content) > 8 else "")
    raise ConversionError(
        f"the checkpoint has no dict of tensors at its top level or under {', '.join(_WRAPPERS)}; "
        f"its top level holds: {keys or 'nothing'}; save only the state dict"
    )


def _find_flat_dicts(content: Mapping[Any, Any], depth: int = 3) -> dict[str, dict[str, np.ndarray]]:
    """Finds every mapping of names to arrays, without scalars, by its keys joined by dots."""
    found: dict[str, dict[str, np.ndarray]] = {}
    if _is_flat(content):
        arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
        return {"": arrays} if arrays else {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and depth:
            inside = _find_flat_dicts(value, depth - 1)
            found |= {f"{key}.{below}" if below else key: arrays for below, arrays in inside.items()}
    return found


def _describe_keys(keys: Iterable[str]) -> str:
    shown = [show(key) or "the top level" for key in keys]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "nothing"


def read_embedding_mean(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the array in an .npy file.

    Raises:
      ConversionError: the file can't be read, or is not an .npy file of numbers.
    """
    with one_line_errors(str(path)), open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _is_flat(mapping: Mapping[object, object]) -> bool:
    keys = all(isinstance(key, str) for key in mapping)
    return keys and all(isinstance(value, (np.ndarray, *SCALARS)) for value in mapping.values())


def _open(path: Path, name: str) -> io.BufferedReader:
    with one_line_errors(name):
        return path.open("rb")


def _read_head(file: io.BufferedIOBase) -> bytes:
    file.seek(0)
    return file.read(_HEAD)


def _detect_format(file: io.BufferedIOBase) -> Format:
    """Detects the format of the container by the first bytes."""
    size = file.seek(0, os.SEEK_END)
    head = _read_head(file)
    # Check this format first, because a header length may look like the magic bytes of another: 640 is 80 02, a pickle.
    if head[8:9] == b"{" and (length := int.from_bytes(head[:8], "little")) <= _MAX_CLAIMED:
        if length > _MAX_HEADER:
            raise ConversionError(f"its safetensors header is over {_MAX_HEADER >> 10} kB; save only the state dict")
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz" if _parse_zip_member(head).endswith(b".npy") else "torch-zip"
    if head[:1] == b"\x80" and _LEGACY_MAGIC in head[:32]:
        return "torch-legacy"
    if head.startswith(_GZIP) or (head[257:262] == b"ustar" and _parse_tar_member(head) not in _LEGACY_TAR):
        return "nemo"
    raise ConversionError(_explain_refusal(head, size) or f"it has an unknown format; give {_KNOWN}")


def _parse_zip_member(head: bytes) -> bytes:
    return head[30 : 30 + int.from_bytes(head[26:28], "little")]


def _parse_tar_member(head: bytes) -> str:
    return head[:100].split(b"\0")[0].decode("latin-1").strip("./")


def _explain_refusal(head: bytes, size: int) -> str | None:
    """Explains what a file is that is not a checkpoint, from its first bytes; None if the bytes don't show it."""
    if not size:
        return "it is empty; download it again"
    if head[:1] == b"\x08" and any(name in head for name in _ONNX_PRODUCERS):
        return "it is an ONNX model, whose weights are fused and renamed; convert its avg_model.pt instead"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "it is a git-lfs pointer, not the file itself; fetch the file with git lfs pull"
    if head[:1] == b"\x80" and head[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "it is a bare pickle, which can run any code when loaded; save its tensors with torch.save or safetensors"
        )
    if head[257:262] == b"ustar":
        return f"it is in PyTorch's tar format from before 0.2; {_RESAVE}"
    if head.startswith((b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
        return "it is compressed; unpack it first"
    if head.startswith(b"\x89HDF\r\n"):
        return f"it is an HDF5 file; give {_KNOWN}"
    return _explain_text(head)


def _explain_text(head: bytes) -> str | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is a web page, most likely an error or log-in page; download the file itself"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the head may end within a character
    except UnicodeDecodeError:
        return None
    if all(char.isprintable() or char in "\t\r\n\f" for char in text):
        return f"it is a text file that begins with {text[:40]!a}; give the checkpoint itself"
    return None
