"""Tests of `diarize` with converted models of published layouts."""

import dataclasses

import numpy as np
import pytest

from ecapa_jax.convert.run import convert
from ecapa_jax.diarization.diarize import diarize
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.presets import PRESETS
from helpers import checkpoints, published
from helpers.conversations import RATE, voice


def wespeaker(folder):
    network = dataclasses.replace(PRESETS["wespeaker-c1024"].ecapa, channels=(16,) * 4, mfa_channels=48)
    return published.wespeaker(folder, published.random_values(published.wespeaker_shapes(network)))


@pytest.mark.parametrize("make", [checkpoints.speechbrain, wespeaker], ids=["speechbrain", "wespeaker"])
def test_converted_model_diarizes(tmp_path, make):
    encoder = SpeakerEncoder.from_bundle(convert(make(tmp_path)))
    samples = np.concatenate([voice(2, 120), np.zeros(RATE, np.float32), voice(2, 180)])

    def loud_frames(blocks):
        whole = np.concatenate(list(blocks))
        frames = np.pad(whole, (0, -len(whole) % 512)).reshape(-1, 512)
        return (np.abs(frames).max(axis=1) > 0.02).astype(np.float32), len(whole)

    found = diarize(encoder, samples, 2, overlap=False, vad=loud_frames)
    assert len(found.speakers) == 2
    assert found.speakers[0].embedding.shape == (encoder.config.ecapa.embedding_dim,)
    assert all(np.isfinite(speaker.embedding).all() for speaker in found.speakers)
