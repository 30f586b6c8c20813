"""Fixtures: a small model, and a folder with good and bad recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.encoder import SpeakerEncoder
from helpers.corpora import small_bundle, write_speech


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="session")
def encoder(bundle: Path) -> SpeakerEncoder:
    return SpeakerEncoder.from_bundle(load_bundle(bundle))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes 24 good recordings of one length bucket, `good_00.wav` to `good_23.wav`, and a bad one of every kind."""
    root = tmp_path_factory.mktemp("recordings")
    for index in range(24):
        write_speech(root / f"good_{index:02d}.wav", 0.5 + 0.02 * index, seed=index)
    (root / "not audio.wav").write_text("hello " * 100)
    (root / "truncated.wav").write_bytes((root / "good_00.wav").read_bytes()[:4000])
    (root / "empty.wav").write_bytes(b"")
    write_speech(root / "short.wav", 0.02)
    write_speech(root / "silent.wav", 0.5, gain=0)
    write_speech(root / "nan.wav", 0.5, gain=np.nan)
    (root / "a folder.wav").mkdir()
    return root
