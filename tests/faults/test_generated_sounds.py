"""Recordings that a seeded generator makes by kind: the right samples, or one line that says what is wrong."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest

from ecapa_jax.audio.load import load_audio
from ecapa_jax.errors import AudioError
from helpers.fault_sounds import KINDS, RATE, Sound, sounds

SAMPLE, ALL = 8, 60


def judge(case: Sound) -> str:
    """What is wrong with what loading gives; empty if nothing is."""
    options = {"sample_rate": RATE, "target_rate": RATE, "channel": "first", **case.options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = load_audio(case.source, **options)
        except AudioError as error:
            if isinstance(case.expected, np.ndarray):
                return f"refused: {error}"
            return "" if case.expected in str(error) and "\n" not in str(error) else f"another message: {error}"
    if not isinstance(case.expected, np.ndarray):
        return "taken"
    if case.warns and not any(case.warns in str(warning.message) for warning in caught):
        return "no warning"
    if found.shape != case.expected.shape:
        return f"{found.shape} samples instead of {case.expected.shape}"
    return "" if np.abs(found - case.expected).max() < 1e-6 else "other samples"


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_each_kind(kind):
    assert [judge(case) for case in sounds(kind, SAMPLE)] == [""] * SAMPLE


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_of_each_kind(kind):
    wrong = [reason for case in sounds(kind, ALL) if (reason := judge(case))]
    print(f"{kind}: {ALL} tried, {len(wrong)} wrong")
    with contextlib.suppress(IndexError):
        print(wrong[0])
    assert not wrong
