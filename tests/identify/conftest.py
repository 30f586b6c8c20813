"""Fixtures: a small model and a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.identify.store import SpeakerStore
from helpers.corpora import small_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="session")
def encoder(bundle: Path) -> SpeakerEncoder:
    return SpeakerEncoder.from_bundle(load_bundle(bundle))


@pytest.fixture
def store(tmp_path: Path, encoder: SpeakerEncoder) -> Iterator[SpeakerStore]:
    with SpeakerStore.open(tmp_path / "s.db", encoder) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _accept_synthetic_sounds(every_sound_is_speech: None) -> None:
    """Makes the speech gate accept the synthetic sounds of these tests."""
