"""A small model and recordings for the command line."""

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
    """Commands share a compiled encoder: what `load` itself does is tested without this."""
    monkeypatch.setattr(api, "load", lambda *_, **__: encoder)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "a.wav")


@pytest.fixture(autouse=True)
def _sounds_pass(every_sound_is_speech: None) -> None:
    """These tests embed sounds that they make."""
