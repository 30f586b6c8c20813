"""Detects the family of a checkpoint from its tensors, or from file names if tensors can't decide, without a guess."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ecapa_jax.convert.family import Family, Source
from ecapa_jax.convert.readers.pickle_machine import show
from ecapa_jax.convert.rules import Tensors
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.errors import ConversionError

TRAINED = "embedding_model.ckpt"
BUNDLE = "model.json"

TRAINING_PREFIXES = ("classifier.", "projection.", "head.", "loss.", "speaker_loss.", "aam.")
"""Prefixes of training tensors, which a checkpoint may contain beside the network and which inference does not use."""

UNSUPPORTED_CHECKPOINTS = (
    (".frontend.upstream.", "an ECAPA-TDNN on WavLM or another self-supervised front end; use it with ESPnet-SPK"),
    (".hifigan_decoder.speaker_encoder.", "a part of XTTS, whose speaker encoder is a ResNet; use it with Coqui TTS"),
)
"""Parts of tensor names that show that a checkpoint can't be converted, although it may contain a known network."""

UNSUPPORTED_NETWORKS = (
    (("layer2.0.conv.weight", "layer2.1.convs.0.weight"), "lawlict's ECAPA-TDNN; no weights of it were published"),
    (
        ("blocks.0.conv.weight", "blocks.1.tdnn1.conv.weight"),
        "Qwen's speaker encoder, a part of a TTS system and not a verification model; use it with transformers",
    ),
    (("head.conv1.weight", "xvector.tdnn.linear.weight"), "a CAM++, another network; use it with 3D-Speaker"),
    (("conv1.weight", "layer1.0.convs.0.weight"), "an ERes2Net or Res2Net, another network; use it with 3D-Speaker"),
    (("conv1.weight", "layer1.0.conv1.weight"), "a ResNet, another network; use it with its own toolkit"),
)
"""Signatures and descriptions of networks that the converter recognises and refuses; the first match counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network among the tensors of a checkpoint.

    Attributes:
      tensors: tensors of the network, by their names without the prefix of wrappers.
      prefix: the prefix of wrappers.
      training: tensors of the training beside the network, by their full names.
      unknown: other tensors beside the network; `check_unknown` decides whether they also belong to the training.
      families: families that have this layout.
    """

    tensors: Tensors
    prefix: str
    training: Tensors
    unknown: Tensors
    families: tuple[Family, ...]


def find_network(tensors: Tensors) -> Network:
    """Finds the one network in a checkpoint.

    The function does not know the names of wrappers, such as `module.`, `model.` or `mods.embedding_model.`, which may
    be nested to any depth. It finds the network by the signature of a family. One tensor of the signature is enough,
    because the rule table reports missing tensors.

    Raises:
      ConversionError: the checkpoint contains no network, an unsupported one, several networks, or unknown tensors.
    """
    for part, what in UNSUPPORTED_CHECKPOINTS:
        if any(part in f".{name}" for name in tensors):
            raise ConversionError(f"this is {what}")
    prefixes = _find_prefixes(tensors)
    if not prefixes:
        raise _explain_refusal(tensors)
    if len(prefixes) > 1:
        found = ", ".join(f"{show(prefix)}*" for prefix in sorted(prefixes)[:4])
        raise ConversionError(f"it contains several networks ({found}): save the state dict of the network to convert")
    prefix = prefixes.pop()
    training = {name: tensor for name, tensor in tensors.items() if _is_training_tensor(name, prefix)}
    network = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix) and name not in training}
    unknown = {name: tensor for name, tensor in tensors.items() if name not in network and name not in training}
    own = {name.removeprefix(prefix): tensor for name, tensor in network.items()}
    likeness = {name: sum(part in own for part in f.signature) / len(f.signature) for name, f in FAMILIES.items()}
    families = tuple(f for name, f in FAMILIES.items() if likeness[name] == max(likeness.values()))
    return Network(tensors=own, prefix=prefix, training=training, unknown=unknown, families=families)


def holds_network(tensors: Tensors) -> bool:
    """Whether the tensors contain a network of a known family."""
    return bool(_find_prefixes(tensors))


def _find_prefixes(tensors: Tensors) -> set[str]:
    """Finds the prefix of every known network."""
    signature = {part for family in FAMILIES.values() for part in family.signature}
    return {name.removesuffix(part) for name in tensors for part in signature if f".{name}".endswith(f".{part}")}


def find_training_tensors(tensors: Tensors, embedding_dim: int) -> dict[str, bool]:
    """Determines which tensors belong to the training, from their shapes.

    A classifier has a matrix of speakers by embedding values, or its transpose. The other tensors of the classifier
    have the name of the matrix except for the last part, and are at most as large as a row or column of the matrix. A
    counter, a scale or a margin is one number.

    Returns:
      For each name, whether the tensor belongs to a classifier or a criterion, or is a counter.
    """
    heads = {
        name.rpartition(".")[0]: max(tensor.shape)
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and embedding_dim in tensor.shape
    }

    def belongs(name: str, tensor: np.ndarray) -> bool:
        module = name.rpartition(".")[0]
        largest = max((size for head, size in heads.items() if head == module), default=0)
        return tensor.size <= 1 or (module in heads and (tensor.size <= largest or embedding_dim in tensor.shape))

    return {name: belongs(name, tensor) for name, tensor in tensors.items()}


def check_unknown(unknown: Tensors, embedding_dim: int, prefix: str) -> None:
    """Raises an error if a tensor beside the network does not belong to its training.

    Raises:
      ConversionError: there is such a tensor; the message names the first one.
    """
    if wrong := [name for name, belongs in find_training_tensors(unknown, embedding_dim).items() if not belongs]:
        raise ConversionError(
            f"unexpected tensor {show(wrong[0])} {unknown[wrong[0]].shape} beside the network ({show(prefix)}*)"
            f"{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}: it is not a classifier with {embedding_dim} "
            "values per speaker; save only the state dict of the network"
        )


def _is_training_tensor(name: str, prefix: str) -> bool:
    """Whether the name of a tensor shows that it belongs to the training, beside the network or a wrapper around it."""
    if prefix.endswith("0.") and name.startswith(f"{prefix.removesuffix('0.')}1."):
        return True  # the classifier in a `Sequential` of network and classifier
    parts = prefix.split(".")
    levels = ["".join(f"{part}." for part in parts[:depth]) for depth in range(len(parts))]
    return any(name.startswith(level) and name.removeprefix(level).startswith(TRAINING_PREFIXES) for level in levels)


def _explain_refusal(tensors: Tensors) -> ConversionError:
    for signature, what in UNSUPPORTED_NETWORKS:
        if all(any(f".{name}".endswith(f".{part}") for name in tensors) for part in signature):
            return ConversionError(f"this is {what}")
    shown = ", ".join(show(name) for name in list(tensors)[:4])
    return ConversionError(f"it contains no ECAPA-TDNN that this version knows (its tensors: {shown}, ...)")


def find_weights(source: Path) -> Path:
    """Finds the weight file of a source, which is a file, a directory with a published file name, or a training run.

    Raises:
      ConversionError: the source is missing, is a bundle, or is a directory without exactly one weight file.
    """
    if not os.path.exists(source):
        raise ConversionError(f"{source}: no such file or directory; check the path")
    if not source.is_dir():
        return source
    _refuse_bundles(source)
    known = dict.fromkeys(name for family in FAMILIES.values() for name in family.files)
    names = [name for name in known if (source / name).is_file()]
    if not names and (trained := _find_training_checkpoint(source)):
        return trained
    if len(names) != 1:
        none = f"none of the known weight files ({', '.join(known)})"
        found = f"several weight files ({', '.join(names)})" if names else none
        raise ConversionError(f"{source} contains {found}: give the path of the weight file")
    return source / names[0]


def _refuse_bundles(source: Path) -> None:
    """Raises an error if the source is or contains a bundle of this library, which needs no conversion."""
    for folder in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
        if (folder / BUNDLE).is_file() and (folder / "checkpoint").is_dir():
            run = "" if folder == source else ", the result of a training run"
            raise ConversionError(
                f"{folder} is already a bundle of ecapa-jax{run}: use it directly with --model {folder}"
            )


def _find_training_checkpoint(source: Path) -> Path | None:
    """Finds the weights of a training run of 3D-Speaker (its last epoch) or SpeechBrain (its only checkpoint).

    Raises:
      ConversionError: there are several checkpoints of SpeechBrain; only its log says which checkpoint is the best.
    """
    for folder in (source, source / "models", source / "save"):
        found = sorted(folder.glob(f"CKPT[-+]*/{TRAINED}"))
        epochs = [(tuple(map(int, re.findall(r"\d+", path.parent.name))), path) for path in found]
        if found and all(path.parent.name.startswith("CKPT-EPOCH-") for path in found):
            return max(epochs)[1]
        if len(found) > 1:
            names = ", ".join(path.parent.name for path in found[-4:])
            raise ConversionError(
                f"{folder} contains {len(found)} checkpoints ({names}): give the folder of one checkpoint"
            )
        if found:
            return found[0]
    return None


def choose_family(families: Sequence[Family], source: Source, name: str | None) -> Family:
    """Chooses the family that the caller names, the only family with this layout, or the family that file names prove.

    Several families can share a layout, for example 3D-Speaker and SpeechBrain, whose tensors have the same shapes.
    Only their front ends differ, so a model that was converted as the wrong family would load but score badly.

    Args:
      families: families with the layout of the network.
      source: place where the network was found.
      name: family that the caller names; None detects the family.

    Raises:
      ConversionError: the name is unknown or has another layout, or the family can't be determined.
    """
    names = [family.name for family in families]
    if name is not None:
        if name not in FAMILIES:
            raise ConversionError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
        if name not in names:
            raise ConversionError(f"{source.path}: its tensors have the layout of {' or '.join(names)}, not of {name}")
        return FAMILIES[name]
    proven = [family for family in families if family.recognises(source)] if len(families) > 1 else list(families)
    if len(proven) == 1:
        return proven[0]
    raise ConversionError(
        f"{source.path} could be {' or '.join(names)}: their tensors look alike and the file names don't decide, so "
        f"pass {' or '.join(f'--family {each}' for each in names)}"
    )
