"""Writes the trained model as a bundle."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
from pathlib import Path

import jax
import numpy as np

from ecapa_jax.bundle.bundle import Bundle, save_bundle
from ecapa_jax.scoring.config import Scoring
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.data.manifest import TrainingManifest
from ecapa_jax.train.dev import DevResult
from ecapa_jax.train.state import State, model_variables

FAMILY = "ecapa-jax"


def _describe_start(config: TrainConfig) -> str:
    """Names the origin of the weights without the folder, which is private."""
    start = config.start.run or config.start.bundle
    return Path(start).name if start else "random weights"


def write_bundle(
    config: TrainConfig, state: State, manifest: TrainingManifest, path: Path, dev: DevResult | None, dev_name: str
) -> Path:
    """Writes the bundle of a finished run, with the threshold of equal error rates on the dev trials."""
    points = []
    if dev is not None:
        point = {name: getattr(dev, name) for name in ("threshold", "far", "frr", "n_trials", "eer", "min_dcf")}
        points = [{**point, "trials": dev_name}]
    provenance = {
        "family": FAMILY,
        "source": f"trained from {_describe_start(config)}",
        "converter": f"ecapa-jax {importlib.metadata.version('ecapa-jax')}",
        "date": datetime.date.today().isoformat(),
        "training": {
            "steps": int(state["step"]),
            "speakers": len(manifest.speakers),
            "utterances": len(manifest),
            "hours": round(float(manifest.samples.sum()) / manifest.rate / 3600, 2),
            "data": manifest.fingerprint,
            "loss": dataclasses.asdict(config.loss),
        },
    }
    bundle = Bundle(
        config=config.model,
        variables=jax.tree.map(np.asarray, model_variables(state)),
        scoring=Scoring(threshold=None if dev is None else float(np.clip(dev.threshold, -1, 1))),
        provenance=provenance,
        operating_points=points,
    )
    return save_bundle(bundle, path, force=True)
