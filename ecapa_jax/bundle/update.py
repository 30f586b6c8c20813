"""A bundle with other scoring: all files but those about scoring are copied as they are."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ecapa_jax.bundle.bundle import FILES, check_target, read_document, write_json
from ecapa_jax.bundle.card import card
from ecapa_jax.bundle.scoring_arrays import write_arrays
from ecapa_jax.errors import BundleError
from ecapa_jax.files.atomic import Identity, replacing_folder
from ecapa_jax.scoring.config import Cohort, Scoring


def update_scoring(
    source: Path,
    target: Path,
    *,
    scoring: Scoring,
    operating_points: list[dict[str, Any]],
    embedding_mean: np.ndarray | None,
    cohort: Cohort | None,
    force: bool,
    over: Identity,
) -> None:
    """Writes `source` with this scoring to `target`, whole or not at all; the weights stay bit for bit.

    Args:
      source: a bundle.
      target: where to; `source` itself with `force`. What stands there stays until the new bundle is whole.
      scoring: replaces the old one.
      operating_points: replace the old ones.
      embedding_mean, cohort: what scoring.npz shall hold.
      force: replace what stands at `target`.
      over: what stood at `target` when the work began that gave the scoring; what another command has written since
        is not replaced.

    Raises:
      BundleError: there is no bundle at `source`, or `target` can't be written or exists (without `force`).
    """
    document = {**read_document(source), "scoring": dataclasses.asdict(scoring)}
    check_target(target, force=force)
    with replacing_folder(target, over=over, error=BundleError) as temporary:
        for name in sorted(FILES - {"model.json", "operating_points.json", "scoring.npz", "README.md"}):
            if (source / name).is_dir():
                shutil.copytree(source / name, temporary / name, copy_function=shutil.copyfile)
            elif (source / name).exists():
                shutil.copyfile(source / name, temporary / name)
        write_json(temporary / "model.json", document)
        write_arrays(temporary / "scoring.npz", embedding_mean, cohort)
        if operating_points:
            write_json(temporary / "operating_points.json", operating_points)
        parity = json.loads((source / "parity.json").read_text("utf-8")) if (source / "parity.json").exists() else {}
        (temporary / "README.md").write_text(card(document, operating_points, parity), "utf-8")
