"""The description of a checkpoint family that the converter needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.convert.rules import Rule, Tensors
from ecapa_jax.scoring.config import Scoring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The place where a network was found.

    Attributes:
      path: the weight file.
      inside: other files in the same archive, by name.
      wrapper: key of the dict that holds the tensors; "" at the top level.
      prefix: prefix of the names of the tensors.
    """

    path: Path
    inside: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    wrapper: str = ""
    prefix: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One published model of a family.

    Attributes:
      preset: its configuration, a key of `presets.PRESETS`.
      file: name of the weight file.
      licence: licence of the weights.
      figures: figures that the publisher reports, with their source.
    """

    preset: str
    file: str
    licence: str
    figures: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Companions:
    """Information about the model from the files beside the weights or in the same archive.

    Attributes:
      config: front end and network, before the shapes of the tensors are read.
      stated_in: name of the file that describes the whole network; None if a preset is used instead.
      stated: fields of `EcapaConfig` that this file gives, with the names of the arguments in the file.
      scoring: scoring according to the files; None selects the scoring of the family.
      embedding_mean: mean embedding [D]; None if the files don't contain one.
    """

    config: ModelConfig
    stated_in: str | None = None
    stated: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scoring: Scoring | None = None
    embedding_mean: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoints of one publisher.

    Attributes:
      name: name on the command line and in bundles.
      title: name in messages and documents.
      files: names of the published weight files.
      signature: names of tensors that occur exactly once in every checkpoint of this layout; no other tensor of any
        family has a name that ends with one of them. Families with the same layout share a signature.
      ignored: regular expressions of tensors that inference does not use.
      rules: function that makes the rule table for a network.
      infer: function that determines the network from shapes and a base configuration.
      companions: function that reads the files beside the weights.
      recognises: function that returns whether the names of file, companions and wrapper prove the family, among the
        families with the same signature.
      published: published models of the family.
      scoring: scoring of the publisher's tool.
      scoring_with_mean: scoring if the caller gives a mean embedding, as in the figures of the publisher.
    """

    name: str
    title: str
    files: tuple[str, ...]
    signature: tuple[str, ...]
    ignored: tuple[str, ...]
    rules: Callable[[EcapaConfig], list[Rule]]
    infer: Callable[[Tensors, EcapaConfig], EcapaConfig]
    companions: Callable[[Source], Companions]
    recognises: Callable[[Source], bool]
    published: tuple[Published, ...]
    scoring: Scoring = Scoring()
    scoring_with_mean: Scoring = Scoring(subtract_mean=True)
