"""Exports a bundle to PyTorch, with the exact tensors of its source or with tensors in the layout of a family."""

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
"""Layout for a model that was trained by this library and has no source; `speakerlab` and `speechbrain` share it."""

EXTRA = "source_extra.safetensors"
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceTensors:
    """A checkpoint to write.

    Attributes:
      family: family of the layout.
      tensors: tensors with names, order, dtypes, shapes and bits of the source, including those of the training.
      wrapper: key of the dict that holds the tensors; "" at the top level.
      inside: other files in the archive of the source, by name.
      as_source: whether the tensors have the layout of the source itself and not only the layout of a family.
    """

    family: str
    tensors: dict[str, np.ndarray]
    wrapper: str = ""
    inside: dict[str, str] = dataclasses.field(default_factory=dict)
    as_source: bool = False


def source_tensors(path: Path, family: str | None = None) -> SourceTensors:
    """Returns the PyTorch tensors of a bundle.

    Args:
      path: the bundle.
      family: family of the layout; None selects the source of the bundle, or `DEFAULT_FAMILY` if it has no source.

    Raises:
      BundleError: the bundle is incomplete, or its source.json belongs to other weights.
      ConversionError: the family does not support the network or front end of the bundle.
    """
    bundle = load_bundle(path)
    origin = bundle.provenance.get("family")
    if bundle.source.get("tensors") and origin in FAMILIES and family in (None, origin):
        return _restore_source(path, bundle, FAMILIES[origin])
    name = family or DEFAULT_FAMILY
    if name not in FAMILIES:
        raise ConversionError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return SourceTensors(family=name, tensors=_convert_layout(bundle, FAMILIES[name]))


def _restore_source(path: Path, bundle: Bundle, family: Family) -> SourceTensors:
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
        raise BundleError(f"{path / 'source.json'} belongs to other weights ({wrong[0]}): convert the model again")
    tensors = {name: found[name].astype(_parse_dtype(entry["dtype"])) for name, entry in described.items()}
    return SourceTensors(
        family=family.name,
        tensors=tensors,
        wrapper=source.get("wrapper", ""),
        inside=source.get("inside", {}) if source.get("format") == "nemo" else {},
        as_source=True,
    )


def _parse_dtype(name: str) -> np.dtype:
    return _DTYPES.get(name) or np.dtype(name)


def _convert_layout(bundle: Bundle, family: Family) -> dict[str, np.ndarray]:
    """Converts a network of another origin to the tensors of a family, with counters at zero.

    Raises:
      ConversionError: the code of the family would compute something else with these weights.
    """
    preset, config = preset_of(family), bundle.config
    front_end = dataclasses.replace(preset.fbank, n_mels=config.fbank.n_mels)
    if different := _describe_difference(front_end, config.fbank):
        raise ConversionError(f"{family.title} has a different front end ({different}): choose another --family")
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
    if different := _describe_difference(inferred, config.ecapa):
        raise ConversionError(f"{family.title} has a different network ({different}): choose another --family")
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in network.items():
        tensors[name] = tensor
        if name.endswith(".running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return tensors


def _describe_difference(theirs: Any, ours: Any) -> str:
    fields = [field.name for field in dataclasses.fields(ours)]
    pairs = {name: (getattr(theirs, name), getattr(ours, name)) for name in fields}
    return ", ".join(f"{name} is {a}, but {b} in this model" for name, (a, b) in pairs.items() if a != b)


def write_torch(path: Path, source: SourceTensors) -> None:
    """Writes the file of the family: a PyTorch checkpoint, or a NeMo archive if the source was one."""
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
    """Writes the tensors by name to a safetensors file. The file has no wrapper, because only pickles have one."""
    tensors = {name: np.array(tensor, order="C") for name, tensor in source.tensors.items()}
    path.write_bytes(safetensors.numpy.save(tensors, {"format": "pt"}))
