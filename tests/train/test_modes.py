"""Test of training in a program that sets JAX's modes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.loop import train
from helpers.modes import MODES
from helpers.training import QuietProgress


@pytest.mark.thorough
def test_run_succeeds_in_every_jax_mode(config: TrainConfig, tmp_path: Path) -> None:
    """The test sets all modes at once."""
    with contextlib.ExitStack() as held:
        for mode in MODES.values():
            held.enter_context(mode())
        assert train(config, tmp_path / "run", QuietProgress()).finished
