"""Explains why a name is neither a bundle nor an address, and suggests what to type instead."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from ecapa_jax.convert.published import PUBLISHED
from ecapa_jax.hub.address import HUBS, is_address
from ecapa_jax.presets import DEFAULT

WEIGHTS = {".bin", ".ckpt", ".pt", ".pth", ".nemo", ".safetensors", ".npz", ".model", ".pdparams"}
"""Suffixes of weight files."""

_ORG_NAME = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]*)/([A-Za-z0-9_][A-Za-z0-9._-]*)(?:@(\S+))?")
_MODELSCOPE = {"iic", "damo", "modelscope"}
_FORMS = "hf:ORG/NAME, modelscope:ORG/NAME or https://HOST/FILE"


def suggestion(name: str) -> str:
    """Returns the address that `ORG/NAME` most likely means; "" if the name has another form."""
    found = _ORG_NAME.fullmatch(name)
    if found is None:
        return ""
    short = f"{found[1]}/{found[2]}"
    known = {each for entry in PUBLISHED for each in (entry.address, *entry.mirrors) if not is_web(each)}
    exact = [f"{hub}:{short}" for hub in HUBS if f"{hub}:{short}" in known]
    near = difflib.get_close_matches(short, [each.partition(":")[2] for each in known], 1, 0.85)
    if not exact and near:
        exact = [each for each in sorted(known) if each.endswith(f":{near[0]}")]
    if not exact and (os.path.isdir(found[1]) or Path(name).suffix.lower() in WEIGHTS):
        return ""  # the name is a mistyped path
    if not exact:
        exact = [f"modelscope:{short}"] if found[1].lower() in _MODELSCOPE else [f"hf:{short}", f"modelscope:{short}"]
    return " or ".join(address + (f"@{found[3]}" if found[3] else "") for address in exact)


def is_web(address: str) -> bool:
    """Whether an address is a URL."""
    return address.startswith(("https://", "http://"))


def why_no_bundle(name: str) -> str:
    """Explains why a name can't be a bundle; returns "" if it may be a bundle, or if it is an address."""
    if os.path.isfile(name):
        if name.endswith(".onnx"):
            return ""  # the reader of ONNX files explains what is wrong
        if Path(name).suffix.lower() in WEIGHTS:
            return f"{name} is a checkpoint, not a bundle: convert it with ecapa-jax convert {name} -o BUNDLE"
        return f"{name} is a file, not a bundle directory: give a directory that `ecapa-jax convert` or `train` wrote"
    if os.path.isdir(name):
        return _explain_no_bundle_in(Path(name))
    if os.path.exists(name) or is_address(name):
        return ""
    if address := suggestion(name):
        return f"{name} is not a bundle directory (no such bundle); for the published model, write {address}"
    near = difflib.get_close_matches(name, [DEFAULT], 1, 0.7)
    hint = f"did you mean {near[0]}? " if near else ""
    return (
        f"{name} is not a bundle directory (no such bundle): {hint}give a directory that `ecapa-jax convert` wrote, "
        f"{DEFAULT}, or {_FORMS}"
    )


def _explain_no_bundle_in(folder: Path) -> str:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ""
    if "model.json" in names or "checkpoint" in names:
        return ""  # a bundle, or the rest of a damaged bundle
    if weights := [name for name in names if Path(name).suffix.lower() in WEIGHTS]:
        return (
            f"{folder} contains a checkpoint ({weights[0]}), not a bundle: convert it with "
            f"ecapa-jax convert {folder} -o BUNDLE"
        )
    for inside in ("best_bundle", "bundle"):
        if (folder / inside / "model.json").is_file():
            return f"{folder} is a training run, not a bundle; its bundle is {folder / inside}"
    return ""
