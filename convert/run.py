"""Converts a checkpoint of another library to a bundle, and proves that the bundle lost nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax import functional
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.convert.detect import (
    check_unknown,
    choose_family,
    find_network,
    find_training_tensors,
    find_weights,
    holds_network,
)
from ecapa_jax.convert.family import Companions, Family, Source
from ecapa_jax.convert.parity import compiled, forget_compiled, full_report, quick_report
from ecapa_jax.convert.readers.checkpoint import Checkpoint, find_tensors, read_checkpoint
from ecapa_jax.convert.rules import Rule, Tensors, check_rules, flatten, move_tensors
from ecapa_jax.errors import ConfigError, ConversionError
from ecapa_jax.presets import PRESETS
from ecapa_jax.scoring.config import Scoring

PROBE_SECONDS = 2
KEEP_COMPILED = 1_000_000
"""Largest number of parameters for which the compiled probe is kept; a larger model needs the memory for itself."""
PUBLISHED_NOTE = "of the published model with this shape and file name; the sha256 of this file was not checked"


def convert(
    source: str | Path,
    *,
    family: str | None = None,
    dilations: tuple[int, ...] | None = None,
    embedding_mean: np.ndarray | None = None,
    verify: bool = False,
    key: str | None = None,
) -> Bundle:
    """Converts a checkpoint to a bundle, which `bundle.bundle.save_bundle` can write.

    Args:
      source: a weight file, or a directory that contains a file with a published name and its companions.
      family: name of the family, if it can't be detected.
      dilations: dilations of the SE-Res2 blocks, if they differ from the family's; shapes don't show dilations.
      embedding_mean: mean embedding [D] of a training set to subtract before scoring, which checkpoints don't contain.
        WeSpeaker's figures subtract the mean embedding of VoxCeleb2-dev.
      verify: whether to compare every stage, with the original PyTorch code if it is installed. By default, only the
        embedding is compared with packaged golden values, without torch.
      key: location of the tensors of the network in the checkpoint, as keys joined by dots, if several dicts fit.

    Returns:
      The bundle; its `parity` says that every tensor was restored bit for bit, and how large the errors are.

    Raises:
      ConversionError: the file can't be read, belongs to no supported family, or does not fit the rule table.
    """
    weights = find_weights(Path(source))
    checkpoint = read_checkpoint(weights)
    with _name_file(weights):
        tensors, wrapper = find_tensors(checkpoint.content, key, holds_network)
        found = find_network(tensors)
    origin = Source(path=weights, inside=checkpoint.inside, wrapper=wrapper, prefix=found.prefix)
    chosen = choose_family(found.families, origin, family)
    companions = chosen.companions(origin)
    described = _describe_source(tensors, origin, checkpoint)
    network, training, unknown = dict(found.tensors), found.training, found.unknown
    # Only `network` holds the tensors now. They are removed from it one by one, so the model is in memory only once.
    del tensors, found
    checkpoint = dataclasses.replace(checkpoint, content=None)
    with _name_file(weights):
        config = _make_config(chosen, network, companions.config, dilations)
        check_unknown(unknown, config.ecapa.embedding_dim, origin.prefix)
        rules, shapes = chosen.rules(config.ecapa), functional.abstract(config)
        heads = _take_heads(chosen, rules, network, config.ecapa.embedding_dim, origin.prefix)
        skipped = check_rules(rules, chosen.ignored, network, shapes)
        _check_stated(companions, config, dilations)
        extra = {**{origin.prefix + name: network[name] for name in skipped}, **training, **unknown, **heads}
        variables = move_tensors(rules, network, shapes)
        parity = _measure_parity(chosen, config, variables, _count_tensors(rules, variables, len(extra)), verify)
    scoring, mean = _choose_scoring(chosen, companions, embedding_mean, config.ecapa.embedding_dim)
    return Bundle(
        config=config,
        variables=variables,
        scoring=scoring,
        provenance=_describe_provenance(chosen, config, checkpoint),
        embedding_mean=mean,
        parity=parity,
        source=described,
        source_extra=extra,
    )


def _take_heads(
    family: Family, rules: Sequence[Rule], network: dict[str, np.ndarray], embedding_dim: int, prefix: str
) -> dict[str, np.ndarray]:
    """Removes the tensors of the training from a network, if a classifier has the same prefix as the network."""
    sources = {rule.source for rule in rules}
    own = {name.partition(".")[0] for name in sources}
    left = {
        name: tensor
        for name, tensor in network.items()
        if name not in sources
        and name.partition(".")[0] not in own
        and not any(re.fullmatch(pattern, name) for pattern in family.ignored)
    }
    heads = [name for name, belongs in find_training_tensors(left, embedding_dim).items() if belongs]
    return {prefix + name: network.pop(name) for name in heads}


def _choose_scoring(
    family: Family, companions: Companions, mean: np.ndarray | None, embedding_dim: int
) -> tuple[Scoring, np.ndarray | None]:
    """Returns the scoring of the publisher, and the mean embedding that the caller gives or the checkpoint contains."""
    if mean is None:
        return companions.scoring or family.scoring, companions.embedding_mean
    if mean.shape != (embedding_dim,) or mean.dtype.kind != "f" or not np.isfinite(mean).all():
        raise ConversionError(
            f"the mean embedding has shape {mean.shape} and dtype {mean.dtype}: it must be {embedding_dim} finite "
            f"floats, as np.save writes them"
        )
    return family.scoring_with_mean, mean.astype(np.float32)


@contextlib.contextmanager
def _name_file(weights: Path) -> Iterator[None]:
    """Adds the name of the file to the beginning of the message of a ConversionError.

    Raises:
      ConversionError: the body raised one.
    """
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"{weights}: {error}") from error


def _make_config(family: Family, network: Tensors, base: ModelConfig, dilations: tuple[int, ...] | None) -> ModelConfig:
    try:
        ecapa: EcapaConfig = base.ecapa
        if dilations is not None:
            ecapa = with_dilations(ecapa, dilations)
        ecapa = family.infer(network, ecapa)
        return ModelConfig(fbank=dataclasses.replace(base.fbank, n_mels=ecapa.n_mels), ecapa=ecapa)
    except ConfigError as error:
        raise ConversionError(f"its shapes don't describe a valid network: {error}") from error


def _check_stated(companions: Companions, config: ModelConfig, dilations: tuple[int, ...] | None) -> None:
    """Compares the network that a companion file describes with the network of the tensors.

    Raises:
      ConversionError: they differ; the message names every such argument.
    """
    differ = []
    for field, argument in companions.stated.items():
        stated, found = getattr(companions.config.ecapa, field), getattr(config.ecapa, field)
        if stated != found and not (field == "dilations" and dilations is not None):
            differ.append(f"{argument} gives {field} {stated}, but the tensors give {found}")
    if differ:
        raise ConversionError(f"{companions.stated_in} describes another network: {'; '.join(differ)}")


def with_dilations(base: EcapaConfig, dilations: tuple[int, ...]) -> EcapaConfig:
    """Gives `base` as many blocks as there are dilations; `infer` reads the rest from the shapes."""
    blocks = len(dilations)
    return dataclasses.replace(
        base,
        channels=(base.channels[0],) * (blocks + 1),
        kernel_sizes=(base.kernel_sizes[0], *(base.kernel_sizes[-1:] * blocks)),
        dilations=dilations,
    )


def _describe_provenance(family: Family, config: ModelConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    provenance: dict[str, Any] = {
        "family": family.name,
        "source": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "converter": f"ecapa-jax {importlib.metadata.version('ecapa-jax')}",
        "date": datetime.date.today().isoformat(),
    }
    for model in family.published:
        if checkpoint.path.name == model.file and config == PRESETS[model.preset]:
            provenance["licence"] = f"{model.licence} (licence of the published model)"
            provenance["published"] = {**model.figures, "note": PUBLISHED_NOTE}
    return provenance


def _count_tensors(rules: Sequence[Rule], variables: dict[str, Any], n_extra: int) -> dict[str, Any]:
    """Counts tensors and parameters; `move_tensors` has already proven that the tensors are identical."""
    leaves = flatten(variables)
    return {
        "tensors": len(rules),
        "tensors_bit_identical": len(rules),
        "tensors_not_used": n_extra,
        "parameters": sum(leaves[rule.target].size for rule in rules if "running" not in rule.source),
    }


def _measure_parity(
    family: Family, config: ModelConfig, variables: dict[str, Any], counts: dict[str, Any], verify: bool
) -> dict[str, Any]:
    """Runs the model once, and returns the proof: the counts, this embedding's length, and the report of errors.

    Raises:
      ConversionError: the embedding is not finite.
    """
    embedding = _probe(config, variables)
    if not np.isfinite(embedding).all():
        raise ConversionError("the converted model gives an embedding that is not finite")
    probe = {
        "probe": f"{PROBE_SECONDS} s of seeded noise",
        "probe_embedding_norm": float(np.linalg.norm(embedding)),
    }
    report = full_report(family, config, variables) if verify else quick_report(family)
    if counts["parameters"] > KEEP_COMPILED:
        forget_compiled()
    return counts | probe | report


def _probe(config: ModelConfig, variables: dict[str, Any]) -> np.ndarray:
    n_samples = PROBE_SECONDS * config.fbank.sample_rate
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, n_samples)).astype(np.float32)
    placed = jax.device_put(variables, may_alias=True)  # a compiled function would copy NumPy arrays
    return np.asarray(compiled(functional.embed)(config, placed, noise, np.array([n_samples], np.int32)))[0]


def _describe_source(tensors: Tensors, source: Source, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "file": checkpoint.path.name,
        "format": checkpoint.format,
        "wrapper": source.wrapper,
        "prefix": source.prefix,
        "tensors": {
            name: {"dtype": tensor.dtype.name, "shape": list(tensor.shape)} for name, tensor in tensors.items()
        },
        **({"inside": {name: data.decode("utf-8") for name, data in source.inside.items()}} if source.inside else {}),
    }
