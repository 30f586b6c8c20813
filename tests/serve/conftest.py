"""Fixtures: a small model, and a speech gate that accepts synthetic sounds."""

from __future__ import annotations

import pytest

from ecapa_jax.encoder import SpeakerEncoder
from helpers.bundles import make


@pytest.fixture(scope="session")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder.from_bundle(make())


@pytest.fixture(autouse=True)
def _accept_synthetic_sounds(every_sound_is_speech: None) -> None:
    """Makes the speech gate accept the synthetic sounds of these tests."""
