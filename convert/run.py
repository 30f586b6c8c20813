"""A foreign checkpoint to a bundle, with the proof that nothing was lost."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax import functional
from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.convert.detect import choose_family, find_weights, strip_prefix
from ecapa_jax.convert.family import Family
from ecapa_jax.convert.readers import Checkpoint, find_tensors, read_checkpoint
from ecapa_jax.convert.rules import Tensors, apply_rules, invert_rules
from ecapa_jax.errors import ConfigError, ConversionError
from ecapa_jax.io.bundle import Bundle

PROBE_SECONDS = 2


def convert(source: str | Path, *, family: str | None = None, dilations: tuple[int, ...] | None = None) -> Bundle:
    """Converts a checkpoint; `io.bundle.save_bundle` writes the result.

    Args:
      source: a weight file, or a directory with one of the published names and its companions.
      family: name of the family, where file names do not tell.
      dilations: of the SE-Res2 blocks, where they are not the family's; shapes can't tell them.

    Returns:
      The bundle, whose `parity` holds the proof: every tensor restored bit for bit from the result.

    Raises:
      ConversionError: the file can't be read, is not of a supported family, or does not fit its rule table.
    """
    weights = find_weights(Path(source))
    chosen = choose_family(weights, family)
    checkpoint = read_checkpoint(weights)
    tensors, wrapper = find_tensors(checkpoint.content)
    network, prefix, beside = strip_prefix(tensors)
    companions = chosen.companions(weights)
    config = _config(chosen, network, companions.config, dilations)
    variables, skipped = apply_rules(chosen.rules(config.ecapa), chosen.ignored, network, functional.abstract(config))
    if companions.embedding_mean is not None and companions.embedding_mean.shape != (config.ecapa.embedding_dim,):
        raise ConversionError(f"the embedding mean has shape {companions.embedding_mean.shape}, not the embedding's")
    extra = {**{prefix + name: network[name] for name in skipped}, **beside}
    return Bundle(
        config=config,
        variables=variables,
        scoring=companions.scoring,
        provenance=_provenance(chosen, checkpoint),
        embedding_mean=companions.embedding_mean,
        parity=_proof(chosen, config, network, variables, len(extra)),
        source=_describe(tensors, wrapper, prefix, checkpoint),
        source_extra={name: np.ascontiguousarray(tensor) for name, tensor in extra.items()},
    )


def _config(family: Family, network: Tensors, base: ModelConfig, dilations: tuple[int, ...] | None) -> ModelConfig:
    try:
        ecapa: EcapaConfig = base.ecapa
        if dilations is not None:
            ecapa = _with_dilations(ecapa, dilations)
        ecapa = family.infer(network, ecapa)
        return ModelConfig(fbank=dataclasses.replace(base.fbank, n_mels=ecapa.n_mels), ecapa=ecapa)
    except ConfigError as error:
        raise ConversionError(f"the checkpoint's shapes do not make a network: {error}") from error


def _with_dilations(base: EcapaConfig, dilations: tuple[int, ...]) -> EcapaConfig:
    """`base` with as many blocks as dilations, for `infer` to fill the rest from the shapes."""
    blocks = len(dilations)
    return dataclasses.replace(
        base,
        channels=(base.channels[0],) * (blocks + 1),
        kernel_sizes=(base.kernel_sizes[0], *(base.kernel_sizes[-1:] * blocks)),
        dilations=dilations,
    )


def _provenance(family: Family, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "family": family.name,
        "source": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "converter": f"ecapa-jax {importlib.metadata.version('ecapa-jax')}",
        "date": datetime.date.today().isoformat(),
        "licence": f"{family.licence} (the family's published weights)",
        "published": {f"{key} (the family's VoxCeleb model)": value for key, value in family.published.items()},
    }


def _proof(
    family: Family, config: ModelConfig, network: Tensors, variables: dict[str, Any], n_extra: int
) -> dict[str, Any]:
    """Restores every tensor from the result and compares bits, then runs the model once.

    Raises:
      ConversionError: a tensor does not come back, or the embedding is not finite.
    """
    restored = invert_rules(family.rules(config.ecapa), variables)
    for name, tensor in restored.items():
        if not np.array_equal(tensor.astype(network[name].dtype), network[name]):
            raise ConversionError(f"{name} does not come back unchanged (dtype {network[name].dtype})")
    n_values = sum(tensor.size for name, tensor in restored.items() if "running" not in name)
    embedding = _probe(config, variables)
    if not np.isfinite(embedding).all():
        raise ConversionError("the converted model gives an embedding that is not finite")
    return {
        "tensors": len(restored),
        "tensors_bit_identical": len(restored),
        "tensors_not_used": n_extra,
        "parameters": n_values,
        "probe": f"{PROBE_SECONDS} s of seeded noise",
        "probe_embedding_norm": float(np.linalg.norm(embedding)),
    }


def _probe(config: ModelConfig, variables: dict[str, Any]) -> np.ndarray:
    n_samples = PROBE_SECONDS * config.fbank.sample_rate
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, n_samples)).astype(np.float32)
    embed = jax.jit(functional.embed, static_argnums=0)
    return np.asarray(embed(config, variables, noise, np.array([n_samples], np.int32)))[0]


def _describe(tensors: Tensors, wrapper: str, prefix: str, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "file": checkpoint.path.name,
        "format": checkpoint.format,
        "wrapper": wrapper,
        "prefix": prefix,
        "tensors": {
            name: {"dtype": tensor.dtype.name, "shape": list(tensor.shape)} for name, tensor in tensors.items()
        },
    }
