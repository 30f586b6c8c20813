"""What a checkpoint family is to the converter."""

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
    """Where a network was found.

    Attributes:
      path: the weight file.
      inside: other files in the same archive, by name.
      wrapper: key of the dict that held the tensors; "" at the top level.
      prefix: what stood before their names.
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
      file: the name of its weights.
      licence: of its weights.
      figures: what its publisher reports, with the source.
    """

    preset: str
    file: str
    licence: str
    figures: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Companions:
    """What the files beside the weights, or in one archive with them, say.

    Attributes:
      config: front end and network, before the shapes are read.
      stated_in: name of the file that states the network in full; None where a preset fills in.
      stated: `EcapaConfig` fields that it states, to what they are called there.
      scoring: as the files state it; None where the family's holds.
      embedding_mean: [D], where stored.
    """

    config: ModelConfig
    stated_in: str | None = None
    stated: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scoring: Scoring | None = None
    embedding_mean: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One publisher's checkpoints.

    Attributes:
      name: on the command line and in bundles.
      title: for people.
      files: names of the published weight files.
      signature: tensors that every checkpoint of this layout holds, and each once: their names end no other's, of
        no family. Families of one layout share it.
      ignored: regular expressions of tensors that inference does not use.
      rules: the rule table for a network.
      infer: the network, from shapes and a base.
      companions: reads the files beside the weights.
      recognises: whether names of file, companions and wrapper prove the family, among those of the same signature.
      published: its published models.
      scoring: of the publisher's own tool.
      scoring_with_mean: the same where the caller brings a mean embedding, as the publisher's figures have it.
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
