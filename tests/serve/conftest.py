"""A small model."""

from __future__ import annotations

import pytest

from ecapa_jax.encoder import SpeakerEncoder
from helpers.bundles import make


@pytest.fixture(scope="session")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder.from_bundle(make())


@pytest.fixture(autouse=True)
def _sounds_pass(every_sound_is_speech: None) -> None:
    """These tests embed sounds that they make."""
