"""Trials with many ties or without ties, and their operating points by brute force."""

from __future__ import annotations

import fractions
from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

FEW_VALUES = st.lists(st.integers(-6, 6), min_size=1, max_size=20)  # few values, so that most trials are tied


@st.composite
def tied_trials(draw):
    """Draws float64 scores and integer labels."""
    targets, others = draw(FEW_VALUES), draw(FEW_VALUES)
    order = draw(st.permutations(range(len(targets) + len(others))))
    scores = np.array(targets + others, np.float64)
    return scores[order], (np.arange(len(scores)) < len(targets)).astype(int)[order]


def rng_trials(seed: int, n_targets: int = 150, n_nontargets: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores from two overlapping normal distributions, in random order, with labels."""
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(1.5, 1, n_targets), rng.normal(0, 1, n_nontargets)])
    labels = np.concatenate([np.ones(n_targets, int), np.zeros(n_nontargets, int)])
    order = rng.permutation(len(scores))
    return scores[order], labels[order]


def brute_points(
    scores: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[float, fractions.Fraction, fractions.Fraction]]:
    """Returns (threshold, FAR, FRR) as fractions, with one pass over all trials per threshold."""
    targets = [s for s, mark in zip(scores, labels, strict=True) if mark]
    others = [s for s, mark in zip(scores, labels, strict=True) if not mark]
    for threshold in [*sorted(set(scores)), np.inf]:
        far = fractions.Fraction(sum(s >= threshold for s in others), len(others))
        frr = fractions.Fraction(sum(s < threshold for s in targets), len(targets))
        yield threshold, far, frr
