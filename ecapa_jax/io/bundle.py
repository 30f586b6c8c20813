"""A model on disk: what `convert` and `train` write and `load` reads.

model.json              schema, configuration, scoring defaults, provenance
checkpoint/             Orbax checkpoint of the variables
scoring.npz             where the model brings one: embedding mean
operating_points.json   thresholds with FAR and FRR, and the trials they come from
parity.json             proof that the variables equal their source
source.json, source_extra.safetensors   names, dtypes and unused tensors of the source, for the way back
README.md               model card, written from the above
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax import functional
from ecapa_jax.config import SCHEMA, ModelConfig, from_dict, to_dict
from ecapa_jax.errors import BundleError, ConfigError
from ecapa_jax.io.card import card
from ecapa_jax.io.checkpoint import restore_variables, save_variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the model's publisher scores.

    Attributes:
      threshold: accept at this cosine or above; None where none is published or set.
      subtract_mean: subtract the stored mean embedding before the cosine.
    """

    threshold: float | None = None
    subtract_mean: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model with all that travels with it.

    Attributes:
      config: front end and network.
      variables: nested dict of arrays, `{"params", "batch_stats", "constants"}`.
      scoring: the publisher's scoring.
      provenance: family, source, sha256, converter, date, licence, published figures.
      embedding_mean: [D] mean embedding, where the model brings one.
      operating_points: thresholds with error rates.
      parity: the conversion's proof.
      source: names, shapes and dtypes of the source's tensors.
      source_extra: source tensors that inference does not use.
    """

    config: ModelConfig
    variables: dict[str, Any]
    scoring: Scoring = Scoring()
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    embedding_mean: np.ndarray | None = None
    operating_points: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    parity: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    source_extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def save_bundle(bundle: Bundle, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Writes a bundle whole or not at all: into a temporary sibling, renamed when complete.

    Args:
      bundle: the model. Float16 kernels are stored as they are; loading gives float32.
      path: directory to make.
      force: replace what stands there; the old one is kept until the new one stands.

    Raises:
      BundleError: the path exists (without `force`), or can't be written.
    """
    target = Path(path)
    if target.exists() and not force:
        raise BundleError(f"{target} exists: choose another output or pass --force")
    if target.is_dir() and any(target.iterdir()) and not (target / "model.json").exists():
        raise BundleError(f"{target} is not a bundle: it will not be replaced, choose another output")
    with _sibling(target) as temporary:
        _write(bundle, temporary)
        if not target.exists():
            temporary.rename(target)
        else:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.old-") as old:
                target.rename(Path(old) / "bundle")
                temporary.rename(target)
    return target


@contextlib.contextmanager
def _sibling(target: Path) -> Iterator[Path]:
    try:
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial-"))
    except OSError as error:
        raise BundleError(f"{target} can't be written: {error.strerror} ({target.parent})") from error
    try:
        temporary.chmod(0o755)
        yield temporary
    except OSError as error:
        raise BundleError(f"{target} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(bundle: Bundle, path: Path) -> None:
    document = {
        "schema": SCHEMA,
        "config": to_dict(bundle.config),
        "scoring": dataclasses.asdict(bundle.scoring),
        "provenance": bundle.provenance,
    }
    _write_json(path / "model.json", document)
    save_variables(path / "checkpoint", bundle.variables)
    if bundle.embedding_mean is not None:
        np.savez(path / "scoring.npz", embedding_mean=bundle.embedding_mean)
    for name in ("operating_points", "parity", "source"):
        if value := getattr(bundle, name):
            _write_json(path / f"{name}.json", value)
    if bundle.source_extra:
        import safetensors.numpy

        safetensors.numpy.save_file(bundle.source_extra, path / "source_extra.safetensors")
    (path / "README.md").write_text(card(document, bundle.operating_points, bundle.parity))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def load_bundle(path: str | os.PathLike[str], sharding: jax.sharding.Sharding | None = None) -> Bundle:
    """Reads a bundle; its variables come as float32 arrays placed by `sharding` (default: the first device).

    Raises:
      BundleError: naming the file that is missing, damaged, of another schema, or does not fit the rest.
    """
    root = Path(path)
    document = read_document(root)
    try:
        config = from_dict(ModelConfig, document["config"], "config")
        scoring = Scoring(**document["scoring"])
    except (ConfigError, TypeError, KeyError) as error:
        raise BundleError(f"{root / 'model.json'}: {error}") from error
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    variables = restore_variables(root / "checkpoint", functional.abstract(config), sharding)
    return Bundle(
        config=config,
        variables=variables,
        scoring=scoring,
        provenance=document.get("provenance", {}),
        embedding_mean=_embedding_mean(root / "scoring.npz", config.ecapa.embedding_dim),
        operating_points=_read_json(root / "operating_points.json", []),
        parity=_read_json(root / "parity.json", {}),
        source=_read_json(root / "source.json", {}),
    )


def read_document(root: Path) -> dict[str, Any]:
    """The content of a bundle's model.json.

    Raises:
      BundleError: there is no bundle at `root`, or its model.json is damaged or of another schema.
    """
    if not root.is_dir():
        raise BundleError(f"{root} is not a bundle directory: name one that `ecapa-jax convert` wrote")
    if not (root / "model.json").is_file():
        raise BundleError(f"{root} is not a whole bundle (no model.json): convert the model again")
    document = _read_json(root / "model.json", {})
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else None
        raise BundleError(
            f"{root / 'model.json'} has schema {found}, this version reads {SCHEMA}: convert the model again"
        )
    return document


def _read_json(path: Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is damaged ({error}): convert the model again") from error


def _embedding_mean(path: Path, embedding_dim: int) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        mean = np.load(path, allow_pickle=False)["embedding_mean"]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path} is damaged ({error}): convert the model again") from error
    if mean.shape != (embedding_dim,) or not np.isfinite(mean).all():
        raise BundleError(f"{path} holds an embedding mean of shape {mean.shape}, expected ({embedding_dim},)")
    return mean.astype(np.float32)
