"""Bundles: models on disk, which `convert` and `train` write and `load` reads.

model.json              schema, configuration, scoring defaults, provenance, sha256 of the checkpoint's files
checkpoint/             Orbax checkpoint of the variables
scoring.npz             embedding mean and cohort, if the model has them
operating_points.json   thresholds with FAR and FRR, and the trials they come from
parity.json             proof that the variables equal their source
source.json, source_extra.safetensors   names, dtypes and unused tensors of the source, to convert the model back
README.md               model card, written from the above
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax.bundle.card import write_card
from ecapa_jax.bundle.checkpoint import restore_variables, save_variables
from ecapa_jax.bundle.scoring_arrays import read_arrays, write_arrays
from ecapa_jax.config import SCHEMA, ModelConfig, Variables, from_dict, to_dict
from ecapa_jax.errors import BundleError, ConfigError
from ecapa_jax.files.atomic import ANYTHING, Identity, identity, replacing_folder
from ecapa_jax.scoring.config import Cohort, Scoring, scoring_from_dict

FILES = {
    "model.json", "checkpoint", "scoring.npz", "operating_points.json", "parity.json", "source.json",
    "source_extra.safetensors", "README.md",
}  # fmt: skip
"""All files that a bundle may contain; only model.json and checkpoint/ are always there."""

_AGAIN = "convert the model again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model with its scoring, its origin and the proof of its conversion.

    Attributes:
      config: front end and network.
      variables: nested dict of arrays, `{"params", "batch_stats", "constants"}`.
      scoring: how the model scores.
      provenance: family, source, sha256, converter, date, licence, published figures.
      embedding_mean: [D], mean embedding, if the scoring subtracts one.
      cohort: embeddings with which scores are normalised, if the scoring uses any.
      operating_points: thresholds with error rates.
      parity: proof that the conversion is correct.
      source: names, shapes and dtypes of the tensors of the source.
      source_extra: source tensors that inference does not use.
    """

    config: ModelConfig
    variables: dict[str, Any]
    scoring: Scoring = Scoring()
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    embedding_mean: np.ndarray | None = None
    cohort: Cohort | None = None
    operating_points: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    parity: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    source_extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def save_bundle(
    bundle: Bundle, path: str | os.PathLike[str], *, force: bool = False, over: Identity | str = ANYTHING
) -> Path:
    """Writes a bundle whole or not at all: into a temporary sibling, which is renamed when it is complete.

    Args:
      bundle: the model. Float16 kernels are stored as they are; loading gives float32.
      path: directory to make.
      force: whether to replace an existing bundle, which stays until the new one is complete.
      over: what `files.atomic.identity` returned for the path when the command began. If another command has written
        to the path since, its bundle is not replaced.

    Raises:
      BundleError: the path exists (without `force`), or can't be written.
    """
    target = Path(path)
    if over == ANYTHING:
        check_target(target, force=force)
        over = identity(target)
    with replacing_folder(target, over=over, error=BundleError) as temporary:
        _write(bundle, temporary)
    return target


def check_target(target: Path, *, force: bool) -> None:
    """Checks that a bundle may be written to `target`.

    Raises:
      BundleError: the target exists and may not be replaced. Without `force` nothing may be replaced; with `force` an
        empty directory or a bundle without other files may.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise BundleError(f"{target} exists: choose another output or pass --force")
    names = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    if not target.is_dir() or (names and "model.json" not in names):
        raise BundleError(f"{target} is not a bundle: it will not be replaced, choose another output")
    if foreign := sorted(names - FILES):
        raise BundleError(
            f"{target} holds {foreign[0]}, which does not belong to a bundle: move it away, or choose another output"
        )


def _write(bundle: Bundle, path: Path) -> None:
    document = {
        "schema": SCHEMA,
        "config": to_dict(bundle.config),
        "scoring": dataclasses.asdict(bundle.scoring),
        "provenance": bundle.provenance,
        "checkpoint": save_variables(path / "checkpoint", bundle.variables),
    }
    write_json(path / "model.json", document)
    write_arrays(path / "scoring.npz", bundle.embedding_mean, bundle.cohort)
    for name in ("operating_points", "parity", "source"):
        if value := getattr(bundle, name):
            write_json(path / f"{name}.json", value)
    if bundle.source_extra:
        import safetensors.numpy

        # safetensors.numpy.save_file would make a file that only its owner can read.
        extra = {name: np.array(tensor, order="C") for name, tensor in bundle.source_extra.items()}
        (path / "source_extra.safetensors").write_bytes(safetensors.numpy.save(extra))
    (path / "README.md").write_text(write_card(document, bundle.operating_points, bundle.parity), "utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file of a bundle."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


def load_bundle(
    path: str | os.PathLike[str],
    sharding: jax.sharding.Sharding | None = None,
    abstract: Callable[[ModelConfig], Variables] | None = None,
) -> Bundle:
    """Reads a bundle.

    Args:
      path: the directory of the bundle.
      sharding: where to put the variables, which are float32 arrays; None is the first device.
      abstract: function that returns shapes and dtypes of the variables of a model; None is `functional.abstract`.

    Raises:
      BundleError: a file is missing, damaged, of another schema, or does not fit the others. The message names it.
    """
    root = Path(path)
    document = read_document(root)
    try:
        config = from_dict(ModelConfig, document["config"], "config")
        scoring = scoring_from_dict(document["scoring"])
    except ConfigError as error:
        raise BundleError(f"{root / 'model.json'}: {error}") from error
    mean, cohort = read_arrays(root / "scoring.npz", config.ecapa.embedding_dim)
    bundle = Bundle(
        config=config,
        variables={},
        scoring=scoring,
        provenance=document["provenance"],
        embedding_mean=mean,
        cohort=cohort,
        operating_points=read_operating_points(root),
        parity=_read_json(root / "parity.json", {}),
        source=_read_json(root / "source.json", {}),
    )
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = (abstract or _compute_abstract)(config)
    variables = restore_variables(root / "checkpoint", shapes, sharding, document["checkpoint"])
    return dataclasses.replace(bundle, variables=variables)


def _compute_abstract(config: ModelConfig) -> Variables:
    from ecapa_jax.functional import abstract  # imported here, because it imports Flax, which is slow

    return abstract(config)


def load_scoring(root: Path) -> tuple[Scoring, np.ndarray | None, Cohort | None]:
    """Reads scoring, embedding mean and cohort of a bundle, without its weights.

    Raises:
      BundleError: as `load_bundle`.
    """
    document = read_document(root)
    try:
        config = from_dict(ModelConfig, document["config"], "config")
        scoring = scoring_from_dict(document["scoring"])
    except ConfigError as error:
        raise BundleError(f"{root / 'model.json'}: {error}") from error
    return scoring, *read_arrays(root / "scoring.npz", config.ecapa.embedding_dim)


def read_document(root: Path) -> dict[str, Any]:
    """Reads the model.json of a bundle.

    Raises:
      BundleError: there is no bundle at `root`, or its model.json is damaged or of another schema.
    """
    if not os.path.isdir(root):
        raise BundleError(f"{root} is not a bundle directory: name a directory that `ecapa-jax convert` wrote")
    if not os.path.isfile(root / "model.json"):
        raise BundleError(f"{root} is not a whole bundle (no model.json): {_AGAIN}")
    path = root / "model.json"
    document = _read_json(path, {})
    if document.get("schema") != SCHEMA:
        raise BundleError(f"{path} has schema {document.get('schema')}, this version reads {SCHEMA}: {_AGAIN}")
    if wrong := sorted(document.keys() ^ {"schema", "config", "scoring", "provenance", "checkpoint"}):
        raise BundleError(f"{path}: {wrong[0]} is {'unknown' if wrong[0] in document else 'missing'}: {_AGAIN}")
    provenance, digests = document["provenance"], document["checkpoint"]
    if not isinstance(provenance, dict) or not isinstance(provenance.get("published", {}), dict):
        raise BundleError(f"{path}: provenance, or published in it, is not an object: {_AGAIN}")
    if not isinstance(digests, dict) or not digests:
        raise BundleError(f"{path}: checkpoint names no files: {_AGAIN}")
    return document


def read_operating_points(root: Path) -> list[dict[str, Any]]:
    """Reads the thresholds of a bundle with their error rates; the list may be empty.

    Raises:
      BundleError: the file is damaged, or a point lacks a number.
    """
    path = root / "operating_points.json"
    points = _read_json(path, [])
    for point in points:
        numbers = [point.get(key) for key in ("threshold", "far", "frr")] if isinstance(point, dict) else [None]
        if not all(isinstance(number, int | float) for number in numbers) or "trials" not in point:
            raise BundleError(f"{path}: a point lacks one of threshold, far, frr, trials: {_AGAIN}")
    return points


def _read_json(path: Path, default: Any) -> Any:
    """Reads a file whose content has the type of `default`; returns `default` if there is no file."""
    if not path.exists():
        return default
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged ({error}): {_AGAIN}") from error
    if type(value) is not type(default):
        raise BundleError(f"{path} is damaged (it holds a {type(value).__name__}): {_AGAIN}")
    return value
