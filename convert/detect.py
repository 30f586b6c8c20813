"""Which family a checkpoint is of: by its tensors where they tell, by file names where they don't, never by a guess."""

from __future__ import annotations

from pathlib import Path

from ecapa_jax.convert.family import Family
from ecapa_jax.convert.rules import Tensors
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.errors import ConversionError

PREFIXES = (
    "module.", "_orig_mod.", "mods.embedding_model.", "embedding_model.", "speaker_encoder.", "spk_encoder.",
    "speaker_model.", "backbone.", "t_model.", "model.", "encoder.", "0.", "__S__.",
)  # fmt: skip
"""Wrappers' names in front of every tensor of the network, each stripped only if that brings a signature nearer."""

BESIDE = ("classifier.", "projection.", "head.", "loss.", "speaker_loss.", "aam.")
"""What may stand beside a prefixed network: parts of training, which inference does not use."""

OTHERS = (
    (("layer1.conv.weight", "layer2.se_res2block.0.conv.weight"), "WeSpeaker ECAPA-TDNN, not built yet"),
    (("conv1.weight", "layer1.convs.0.weight", "fc6.weight"), "TaoRuijie ECAPA-TDNN, not built yet"),
    (("encoder.conv.weight", "encoder.layer1.convs.0.weight"), "ESPnet-SPK ECAPA-TDNN, not built yet"),
    (("encoder.layers.0.conv_layer.weight",), "NeMo ECAPA-TDNN, not built yet"),
    (("blocks.0.conv.weight", "blocks.1.tdnn1.conv.weight"), "Qwen's speaker encoder, a TTS front end"),
    (("head.conv1.weight", "xvector.tdnn.linear.weight"), "CAM++, another network; use it with 3D-Speaker"),
    (("conv1.weight", "layer1.0.conv1.weight"), "a ResNet, another network; use it with its own toolkit"),
    (("conv1.weight", "layer1.0.convs.0.weight"), "an ERes2Net or Res2Net, another network; use it with 3D-Speaker"),
)
"""Signatures of what is recognised and refused, with the reason."""


def strip_prefix(tensors: Tensors) -> tuple[Tensors, str, Tensors]:
    """The network's tensors without what wrappers put in front of their names.

    Returns:
      network: with the prefix stripped.
      prefix: what was stripped.
      beside: tensors of training that stood beside the network, under their full names.

    Raises:
      ConversionError: no known network is in it, one that is not supported, or something unknown beside it.
    """
    prefix, network = "", dict(tensors)
    while not _matches(network):
        step = next((p for p in PREFIXES if any(name.startswith(p) for name in network)), None)
        if step is None:
            raise _refusal(tensors)
        network = {name[len(step) :]: tensor for name, tensor in network.items() if name.startswith(step)}
        prefix += step
    beside = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    if unknown := [name for name in beside if not name.startswith(BESIDE)]:
        raise ConversionError(f"unexpected tensor {unknown[0]} beside the network ({prefix}*)")
    return network, prefix, beside


def _signatures() -> set[tuple[str, ...]]:
    return {family.signature for family in FAMILIES.values()}


def _matches(tensors: Tensors) -> bool:
    """Whether most of a signature is there: a tensor missing from it is for the rule table to report."""
    return any(name in tensors for signature in _signatures() for name in signature)


def _refusal(tensors: Tensors) -> ConversionError:
    names = list(tensors)
    for signature, what in OTHERS:
        if all(any(name == part or name.endswith(f".{part}") for name in names) for part in signature):
            return ConversionError(f"this is {what}")
    shown = ", ".join(names[:4])
    return ConversionError(f"no ECAPA-TDNN that this version knows is in the checkpoint (its tensors: {shown}, ...)")


def find_weights(source: Path) -> Path:
    """The weight file of a source: itself, or the one published name in a directory.

    Raises:
      ConversionError: it is missing, or a directory with none or several.
    """
    if not source.exists():
        raise ConversionError(f"{source} does not exist")
    if not source.is_dir():
        return source
    names = [name for family in FAMILIES.values() for name in family.files if (source / name).is_file()]
    if len(names) != 1:
        known = ", ".join(sorted({name for family in FAMILIES.values() for name in family.files}))
        found = f"several weight files ({', '.join(names)})" if names else f"none of the known weight files ({known})"
        raise ConversionError(f"{source} holds {found}: name the file itself")
    return source / names[0]


def choose_family(weights: Path, name: str | None) -> Family:
    """The family the caller names, or the one that file names prove.

    3D-Speaker's and SpeechBrain's tensors are alike to the last shape; only their front ends differ, and a wrong choice
    would load cleanly and score badly.

    Raises:
      ConversionError: the name is unknown, or nothing tells.
    """
    if name is not None:
        if name not in FAMILIES:
            raise ConversionError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
        return FAMILIES[name]
    proven = [family for family in FAMILIES.values() if family.recognises(weights)]
    if len(proven) == 1:
        return proven[0]
    raise ConversionError(
        f"{weights.name} could be of {' or '.join(FAMILIES)}: their tensors look alike and the file names do not tell; "
        f"pass --family"
    )
