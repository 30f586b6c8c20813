"""Fixtures: a small collection of speech-like sounds, and a training run on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.loop import train
from ecapa_jax.train.settings import build_config
from helpers.training import QuietProgress, tiny_document

RATE = 16000


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes three utterances of 0.6 to 0.8 s for each of five speakers, as `speaker/utterance.flac`."""
    folder = tmp_path_factory.mktemp("speech")
    generator = np.random.default_rng(0)
    for speaker in range(5):
        (folder / f"s{speaker}").mkdir()
        for utterance in range(3):
            time = np.arange(int(RATE * generator.uniform(0.6, 0.8))) / RATE
            voice = sum(np.sin(2 * np.pi * (90 + 25 * speaker) * k * time) / k for k in range(1, 12))
            sound = 0.05 * voice + 0.01 * generator.standard_normal(len(time))
            soundfile.write(folder / f"s{speaker}" / f"u{utterance}.flac", sound, RATE)
    return folder


@pytest.fixture(scope="session")
def config(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The configuration of a tiny run."""
    return build_config(tiny_document(collection, tmp_path_factory.mktemp("config")))


@pytest.fixture(scope="session")
def finished(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not interrupted."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert train(config, directory, QuietProgress()).finished
    return directory
