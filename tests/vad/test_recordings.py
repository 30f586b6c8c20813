"""Tests of `speech_segments` with every kind of input, and with recordings that are read as a stream."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from ecapa_jax import vad
from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.vad import recordings
from ecapa_jax.vad.network import FRAME, RATE
from helpers.detector import AUDIO, GOLDEN, golden_waveforms
from helpers.nonspeech import SOUNDS, nonspeech

FILE = AUDIO / "slt_1.flac"


@pytest.fixture(scope="module")
def samples():
    return soundfile.read(FILE, dtype="float32")[0]


@pytest.fixture(scope="module")
def expected():
    return vad.speech_segments(FILE)


def test_segments_equal_silero():
    with np.load(GOLDEN) as stored:
        for name, waveform in golden_waveforms().items():
            found = [(round(one.start * RATE), round(one.end * RATE)) for one in vad.speech_segments(waveform)]
            np.testing.assert_array_equal(np.array(found).reshape(-1, 2), stored[f"{name}/timestamps"])


def test_all_kinds_of_input_give_the_same_segments(samples, expected):
    assert len(expected) >= 1
    stereo = np.stack([samples, samples], axis=1)
    integers = np.round(samples * 32768).astype(np.int16)
    for source in (str(FILE), FILE.read_bytes(), io.BytesIO(FILE.read_bytes()), samples, stereo, integers):
        assert vad.speech_segments(source) == expected


def test_other_rates_are_resampled(tmp_path, samples, expected):
    path = tmp_path / "slow.wav"
    soundfile.write(path, samples[::2], RATE // 2)
    for found in (vad.speech_segments(path), vad.speech_segments(samples[::2], sample_rate=RATE // 2)):
        assert len(found) == len(expected)
        np.testing.assert_allclose(np.array(found), np.array(expected), atol=0.2)


def test_channel_option_selects_the_channel(samples):
    stereo = np.stack([np.zeros_like(samples), samples], axis=1)
    assert vad.speech_segments(stereo, channel="first") == []
    assert vad.speech_segments(stereo) != []


@pytest.mark.parametrize("kind", sorted(set(SOUNDS) - {"melody", "chords"}))
def test_sounds_without_a_voice_have_no_segments(kind):
    assert vad.speech_segments(nonspeech(kind, 5)) == []


def test_threshold_and_options_change_the_segments(samples, expected):
    assert vad.speech_segments(samples, 0.5, min_speech_duration_ms=10_000.0) == []
    cut = vad.speech_segments(samples, max_speech_duration_s=1.0)
    assert len(cut) > len(expected)
    with pytest.raises(ConfigError, match="threshold is 2"):
        vad.speech_segments(samples, 2.0)


def test_unreadable_input_raises_audio_error(tmp_path):
    with pytest.raises(AudioError, match="no such file"):
        vad.speech_segments(tmp_path / "missing.wav")
    with pytest.raises(AudioError, match="not finite"):
        vad.speech_segments(np.full(16000, np.nan, np.float32))


def test_long_recording_as_a_stream_has_the_same_segments(tmp_path, monkeypatch, samples):
    monkeypatch.setattr(recordings, "LONGEST_IN_NUMPY", 64)
    monkeypatch.setattr(recordings, "_FRAMES", 32)
    long = np.concatenate([samples, nonspeech("white", 1, 1.3), samples])[: 300 * FRAME + 77]
    whole = np.asarray(vad.speech_probabilities(long[None], np.array([len(long)])))[0]
    path = tmp_path / "long.wav"
    soundfile.write(path, long, RATE, subtype="FLOAT")
    for source in (path, long):
        found, n_samples = vad.recording_probabilities(source)
        assert n_samples == len(long)
        np.testing.assert_allclose(found, whole, atol=1e-5)


def test_block_size_does_not_change_the_segments(monkeypatch, samples):
    monkeypatch.setattr(recordings, "LONGEST_IN_NUMPY", 20)
    monkeypatch.setattr(recordings, "_FRAMES", 16)
    expected, _ = recordings.stream_probabilities([samples])
    for sizes in ([1, 511, 512, 20_000], [100_000, 3], [7] * 300):
        cuts = np.cumsum(sizes)
        found, n_samples = recordings.stream_probabilities(np.split(samples, cuts[cuts < len(samples)]))
        assert n_samples == len(samples)
        np.testing.assert_array_equal(found, expected)
    empty, n_samples = recordings.stream_probabilities([])
    assert (len(empty), n_samples) == (0, 0)
