"""Bundles for tests, made without converting a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.scoring.config import Scoring
from helpers.checkpoints import CONFIG, tensors
from helpers.weights import variables_of

POINT = {"threshold": 0.25, "far": 0.01, "frr": 0.02, "trials": "dev", "n_trials": 1000}


def make(seed: int = 0, **changes: Any) -> Bundle:
    """Returns a bundle with every optional part."""
    parts = {
        "config": CONFIG,
        "variables": variables_of(CONFIG.ecapa, tensors(seed)),
        "scoring": Scoring(threshold=0.25),
        "provenance": {"family": "3dspeaker", "source": "x.bin", "published": {"EER %": 0.9, "note": "of another"}},
        "embedding_mean": np.linspace(-1, 1, 192, dtype=np.float32),
        "operating_points": [POINT],
        "parity": {"tensors": 200},
        "source": {"file": "x.bin", "tensors": {}},
        "source_extra": {"n": np.array(7), "b": np.ones((2, 3), ml_dtypes.bfloat16).T},
    }
    return Bundle(**{**parts, **changes})


def contents(folder: Path) -> dict[Path, bytes]:
    """Returns the content of every file below a folder, by relative path."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
