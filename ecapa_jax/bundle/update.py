"""Writes a bundle with another scoring; all files that are not about scoring are copied unchanged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ecapa_jax.bundle.bundle import FILES, check_target, read_document, write_json
from ecapa_jax.bundle.card import write_card
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
    """Writes `source` with this scoring to `target`, whole or not at all; the weights don't change in any bit.

    Args:
      source: a bundle.
      target: the new bundle, which with `force` may be `source` itself. An existing bundle stays until the new one is
        complete.
      scoring: the new scoring.
      operating_points: the new operating points.
      embedding_mean, cohort: the new content of scoring.npz.
      force: whether to replace an existing bundle at `target`.
      over: what `files.atomic.identity` returned for `target` when the command began. If another command has written
        to `target` since, its bundle is not replaced.

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
        (temporary / "README.md").write_text(write_card(document, operating_points, parity), "utf-8")
