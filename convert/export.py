"""A bundle back to PyTorch: the tensors of its source, or of a family's layout, bit for bit."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from ecapa_jax.bundle.bundle import Bundle, load_bundle
from ecapa_jax.config import EcapaConfig
from ecapa_jax.convert.family import Family
from ecapa_jax.convert.parity import preset_of
from ecapa_jax.convert.readers.checkpoint import read_checkpoint
from ecapa_jax.convert.readers.nemo_archive import CONFIG, WEIGHTS
from ecapa_jax.convert.rules import flatten, invert_rules
from ecapa_jax.convert.run import with_dilations
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.convert.torch_writer import write_torch_zip
from ecapa_jax.errors import BundleError, ConfigError, ConversionError

DEFAULT_FAMILY = "3dspeaker"
"""The layout of a model that was trained here, or of no source: the one of `speakerlab` and `speechbrain` both."""

EXTRA = "source_extra.safetensors"
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceTensors:
    """A checkpoint to be written.

    Attributes:
      family: whose layout it has.
      tensors: names, order, dtypes, shapes and bits of the source; training's tensors and counters included.
      wrapper: key of the dict that held them; "" at the top level.
      inside: other files of the source's archive, by name.
      as_source: whether this is the source's own layout, not only its family's.
    """

    family: str
    tensors: dict[str, np.ndarray]
    wrapper: str = ""
    inside: dict[str, str] = dataclasses.field(default_factory=dict)
    as_source: bool = False


def source_tensors(path: Path, family: str | None = None) -> SourceTensors:
    """The PyTorch tensors of a bundle.

    Args:
      path: the bundle.
      family: whose layout; None is the source's, or `DEFAULT_FAMILY` for a bundle without one.

    Raises:
      BundleError: there is no whole bundle, or its source.json is of other weights.
      ConversionError: that family has no such network or front end.
    """
    bundle = load_bundle(path)
    origin = bundle.provenance.get("family")
    if bundle.source.get("tensors") and origin in FAMILIES and family in (None, origin):
        return _as_source(path, bundle, FAMILIES[origin])
    name = family or DEFAULT_FAMILY
    if name not in FAMILIES:
        raise ConversionError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return SourceTensors(family=name, tensors=_in_layout(bundle, FAMILIES[name]))


def _as_source(path: Path, bundle: Bundle, family: Family) -> SourceTensors:
    source: dict[str, Any] = bundle.source
    described, prefix = source["tensors"], source.get("prefix", "")
    network = invert_rules(family.rules(bundle.config.ecapa), bundle.variables)
    found = {prefix + name: tensor for name, tensor in network.items()}
    if (path / EXTRA).is_file():
        extra: Any = read_checkpoint(path / EXTRA).content
        found |= extra
    wrong = sorted(found.keys() ^ described.keys())
    wrong += [name for name in found.keys() & described.keys() if list(found[name].shape) != described[name]["shape"]]
    if wrong:
        raise BundleError(f"{path / 'source.json'} is of other weights ({wrong[0]}): convert the model again")
    tensors = {name: found[name].astype(_dtype(entry["dtype"])) for name, entry in described.items()}
    return SourceTensors(
        family=family.name,
        tensors=tensors,
        wrapper=source.get("wrapper", ""),
        inside=source.get("inside", {}) if source.get("format") == "nemo" else {},
        as_source=True,
    )


def _dtype(name: str) -> np.dtype:
    return _DTYPES.get(name) or np.dtype(name)


def _in_layout(bundle: Bundle, family: Family) -> dict[str, np.ndarray]:
    """A family's tensors for a network that did not come from it, with its counters at zero.

    Raises:
      ConversionError: the family's code would compute something else with these weights.
    """
    preset, config = preset_of(family), bundle.config
    front_end = dataclasses.replace(preset.fbank, n_mels=config.fbank.n_mels)
    if different := _different(front_end, config.fbank):
        raise ConversionError(f"{family.title} has another front end: {different}; choose another --family")
    rules = family.rules(config.ecapa)
    leaves = flatten(bundle.variables)
    if unknown := sorted({rule.target for rule in rules} ^ leaves.keys()):
        raise ConversionError(f"{family.title} has no layout for this network ({unknown[0]}): choose another --family")
    network = invert_rules(rules, bundle.variables)
    try:
        base: EcapaConfig = with_dilations(preset.ecapa, config.ecapa.dilations)
        inferred = family.infer(network, base)
    except ConfigError as error:
        raise ConversionError(f"{family.title} has no such network ({error}): choose another --family") from error
    if different := _different(inferred, config.ecapa):
        raise ConversionError(f"{family.title} has another network: {different}; choose another --family")
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in network.items():
        tensors[name] = tensor
        if name.endswith(".running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return tensors


def _different(theirs: Any, ours: Any) -> str:
    fields = [field.name for field in dataclasses.fields(ours)]
    pairs = {name: (getattr(theirs, name), getattr(ours, name)) for name in fields}
    return ", ".join(f"{name} {a} where this model has {b}" for name, (a, b) in pairs.items() if a != b)


def write_torch(path: Path, source: SourceTensors) -> None:
    """Writes the family's own file: a PyTorch checkpoint, or NeMo's archive where the source was one."""
    if CONFIG not in source.inside:
        write_torch_zip(path, source.tensors, source.wrapper)
        return
    weights = io.BytesIO()
    write_torch_zip(weights, source.tensors, source.wrapper)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in ((CONFIG, source.inside[CONFIG].encode()), (WEIGHTS, weights.getvalue())):
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))


def write_safetensors(path: Path, source: SourceTensors) -> None:
    """Writes the same tensors under the same names; a wrapper, which only a pickle has, is left out."""
    tensors = {name: np.array(tensor, order="C") for name, tensor in source.tensors.items()}
    path.write_bytes(safetensors.numpy.save(tensors, {"format": "pt"}))
