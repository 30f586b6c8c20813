"""A bundle with whitened embeddings."""

from __future__ import annotations

import dataclasses

from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.folding import append_affine
from ecapa_jax.scoring.config import Scoring
from ecapa_jax.scoring.whitening import Whitening


def whitened(bundle: Bundle, whitening: Whitening, shrinkage: float, recordings: int) -> Bundle:
    """A bundle whose last layer whitens.

    Threshold, operating points, cohort, calibration and mean embedding belong to the embeddings as they were, and are
    dropped; so is the proof of a conversion, whose original does not whiten.

    Args:
      bundle: the model; its configuration does not change.
      whitening: estimated from the embeddings of this model.
      shrinkage, recordings: how it was estimated, for the card.
    """
    matrix = whitening.matrix
    note = f"Whitened by the embeddings of {recordings} recordings, shrinkage {shrinkage:g}."
    return dataclasses.replace(
        bundle,
        variables=append_affine(bundle.config, bundle.variables, matrix, -whitening.mean @ matrix),
        scoring=Scoring(),
        provenance={**bundle.provenance, "notes": [*bundle.provenance.get("notes", []), note]},
        embedding_mean=None,
        cohort=None,
        operating_points=[],
        parity={},
    )
