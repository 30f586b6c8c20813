"""Tests of training against speakerlab's network, classifier, margin and schedulers with torch's SGD."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

originals = pytest.importorskip(
    "helpers.training_originals", reason="PyTorch or speakerlab is not installed (make peers)", exc_type=ImportError
)

pytestmark = pytest.mark.peers


def test_twenty_steps_in_float64_equal_pytorch(record_property: Any) -> None:
    """Loss, gradients, weights and running statistics differ by at most 1e-8 during warm-up and the margin's rise."""
    with jax.enable_x64(True):
        every = [dataclasses.asdict(gap) for gap in originals.step_differences(np.float64)]
    assert len(every) == originals.STEPS
    worst = {name: max(gap[name] for gap in every) for name in every[0]}
    print("20 steps in float64, worst:", ", ".join(f"{name} {gap:.1e}" for name, gap in worst.items()))
    record_property("training", {f"float64 {name}": gap for name, gap in worst.items()})
    assert max(worst.values()) <= 1e-8


def test_first_step_in_float32_equals_pytorch(record_property: Any) -> None:
    """Every gradient of the first step differs by at most 1e-4 of the largest gradient norm."""
    gap = next(originals.step_differences(np.float32))
    print(f"first step in float32: worst gradient {gap.gradients:.1e} of the largest norm, loss {gap.loss:.1e}")
    record_property("training", {"float32 gradient": gap.gradients})
    assert gap.gradients <= 1e-4
    assert gap.loss <= 1e-4
