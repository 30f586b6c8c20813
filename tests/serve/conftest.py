"""A small model."""

from __future__ import annotations

import pytest

from ecapa_jax.encoder import SpeakerEncoder
from helpers.bundles import make


@pytest.fixture(scope="session")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder.from_bundle(make())
