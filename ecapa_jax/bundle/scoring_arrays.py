"""Reads and writes the scoring.npz of a bundle: the arrays that the scoring of a model needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ecapa_jax.errors import BundleError
from ecapa_jax.scoring.config import Cohort

AGAIN = "convert the model again"


def write_arrays(path: Path, embedding_mean: np.ndarray | None, cohort: Cohort | None) -> None:
    """Writes the arrays that are given; writes no file if there are none."""
    arrays = {} if embedding_mean is None else {"embedding_mean": embedding_mean}
    if cohort is not None:
        arrays |= {"cohort": cohort.embeddings, "cohort_speakers": np.array(cohort.speakers, dtype=str)}
    if arrays:
        np.savez(path, allow_pickle=False, **arrays)


def read_arrays(path: Path, embedding_dim: int) -> tuple[np.ndarray | None, Cohort | None]:
    """Reads embedding mean [D] and cohort; each is None if the bundle has none.

    Raises:
      BundleError: the file is damaged, or an array has the wrong shape or is not finite.
    """
    if not path.exists():
        return None, None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:  # np.load alone would leave it open
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # numpy and zipfile raise many types for a damaged file
        raise BundleError(f"{path} is damaged ({type(error).__name__}: {error}): {AGAIN}") from error
    if unknown := sorted(arrays.keys() - {"embedding_mean", "cohort", "cohort_speakers"}):
        raise BundleError(f"{path} holds an array {unknown[0]}, which does not belong to a bundle: {AGAIN}")
    mean = arrays.get("embedding_mean")
    if mean is not None:
        mean = _check_floats(path, "embedding mean", mean, (embedding_dim,))
    return mean, _make_cohort(path, arrays, embedding_dim)


def _make_cohort(path: Path, arrays: dict[str, np.ndarray], embedding_dim: int) -> Cohort | None:
    rows, speakers = arrays.get("cohort"), arrays.get("cohort_speakers")
    if rows is None and speakers is None:
        return None
    if rows is None or speakers is None or speakers.ndim != 1 or speakers.dtype.kind != "U":
        raise BundleError(f"{path} does not hold one speaker for each row of the cohort: {AGAIN}")
    return Cohort(_check_floats(path, "cohort", rows, (len(speakers), embedding_dim)), tuple(speakers.tolist()))


def _check_floats(path: Path, name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
        size = " x ".join(map(str, shape))
        raise BundleError(f"{path} holds no {name} of {size} finite values: {AGAIN}")
    return array.astype(np.float32)
