"""Tests of generated recordings of each kind: loading gives the right samples or an error in one line."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest

from ecapa_jax.audio.load import load_audio
from ecapa_jax.errors import AudioError
from helpers.fault_sounds import KINDS, RATE, Sound, sounds

SAMPLE, ALL = 8, 60


def find_error(case: Sound) -> str:
    """Loads a recording and returns a description of the wrong result, or an empty string."""
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
def test_some_recordings_of_each_kind(kind):
    assert [find_error(case) for case in sounds(kind, SAMPLE)] == [""] * SAMPLE


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_recordings_of_each_kind(kind):
    wrong = [reason for case in sounds(kind, ALL) if (reason := find_error(case))]
    print(f"{kind}: {ALL} tried, {len(wrong)} wrong")
    with contextlib.suppress(IndexError):
        print(wrong[0])
    assert not wrong
