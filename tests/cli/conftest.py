"""Fixtures for the command line: a small model and recordings."""

from __future__ import annotations

from pathlib import Path

import pytest

import ecapa_jax
from ecapa_jax import api
from ecapa_jax.bundle.bundle import save_bundle
from ecapa_jax.encoder import SpeakerEncoder
from helpers.bundles import make
from helpers.cli import write_wav


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(make(), tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def encoder(model: Path) -> SpeakerEncoder:
    return ecapa_jax.load(model)


@pytest.fixture
def one_encoder(monkeypatch: pytest.MonkeyPatch, encoder: SpeakerEncoder) -> None:
    """Makes all commands use one compiled encoder. Tests of `load` do not use this fixture."""
    monkeypatch.setattr(api, "load", lambda *_, **__: encoder)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "a.wav")


@pytest.fixture(autouse=True)
def _accept_synthetic_sounds(every_sound_is_speech: None) -> None:
    """Makes the speech gate accept the synthetic sounds of these tests."""
