"""What a checkpoint family is to the converter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.convert.rules import Rule, Tensors
from ecapa_jax.io.bundle import Scoring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Companions:
    """What the files beside the weights say.

    Attributes:
      config: front end and network, before the shapes are read.
      stated_in: name of the file that states the network in full; None where a preset fills in.
      stated: `EcapaConfig` fields that it states, to what they are called there.
      scoring: threshold and normalisation, where stated.
      embedding_mean: [D], where stored.
    """

    config: ModelConfig
    stated_in: str | None = None
    stated: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scoring: Scoring = Scoring()
    embedding_mean: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One publisher's checkpoints.

    Attributes:
      name: on the command line and in bundles.
      title: for people.
      files: names of the published weight files.
      signature: tensors that every checkpoint of this layout holds, and each once: their names end no other's.
      ignored: regular expressions of tensors that inference does not use.
      rules: the rule table for a network.
      infer: the network, from shapes and a base.
      companions: reads the files beside the weights.
      recognises: whether the file name and its companions, without the tensors, prove the family.
      licence: of the published weights.
      published: figures of the published VoxCeleb model, with their source.
      published_file: the name that this model's weights have.
    """

    name: str
    title: str
    files: tuple[str, ...]
    signature: tuple[str, ...]
    ignored: tuple[str, ...]
    rules: Callable[[EcapaConfig], list[Rule]]
    infer: Callable[[Tensors, EcapaConfig], EcapaConfig]
    companions: Callable[[Path], Companions]
    recognises: Callable[[Path], bool]
    licence: str
    published: dict[str, Any]
    published_file: str
