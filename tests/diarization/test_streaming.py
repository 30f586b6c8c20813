"""Tests of `Diarizer`: the turns do not depend on the block size, and memory does not grow with time."""

import numpy as np
import pytest

from ecapa_jax.diarization.streaming import Diarizer
from ecapa_jax.errors import AudioError, ConfigError
from helpers.conversations import RATE, PitchEncoder, voice


@pytest.fixture
def detect_loud_frames(monkeypatch):
    """Replaces the speech detector: loud frames are speech, because the network does not accept synthetic voices."""
    from ecapa_jax.vad import in_numpy

    def advance(weights, samples, state):
        return (np.abs(samples.reshape(-1, 512)).max(axis=1) > 0.02).astype(np.float32), state

    monkeypatch.setattr(in_numpy, "advance", advance)


def make_talk():
    pause = np.zeros(RATE, np.float32)
    return np.concatenate([voice(5, 120, 1), pause, voice(5, 180, 2), pause, voice(5, 120, 3)])


def test_turns_are_available_while_the_stream_runs(detect_loud_frames):
    diarizer = Diarizer(PitchEncoder())
    samples, seen = make_talk(), []
    for start in range(0, len(samples), 1600):
        turns = diarizer.push(samples[start : start + 1600])
        seen.append(max((turn.end for turn in turns), default=0.0))
    late = [begun for begun in (5.0, 11.0) if seen[round((begun + 2) * 10)] < begun - 0.2]
    assert not late  # every turn is available two seconds after its end
    found = diarizer.finish()
    assert [turn.speaker for turn in found] == ["speaker_1", "speaker_2", "speaker_1"]
    for turn, start in zip(found, (0, 6, 12), strict=True):
        assert turn.start == pytest.approx(start, abs=0.5)
        assert turn.end == pytest.approx(start + 5, abs=0.5)


@pytest.mark.parametrize("size", [160, 5000, 400_000])
def test_block_size_does_not_change_the_turns(detect_loud_frames, size):
    samples = make_talk()
    one, other = Diarizer(PitchEncoder()), Diarizer(PitchEncoder())
    one.push(samples)
    for start in range(0, len(samples), size):
        other.push(samples[start : start + size])
    assert one.finish() == other.finish()


def test_processed_samples_are_discarded(detect_loud_frames):
    diarizer = Diarizer(PitchEncoder())
    for seed in range(20):
        diarizer.push(voice(3, 120, seed))
    assert len(diarizer._samples) < 5 * RATE
    assert len(diarizer._speech) < 5 * RATE / 512


def test_silence_has_no_turns():
    diarizer = Diarizer(PitchEncoder())
    assert diarizer.push(np.zeros(3 * RATE, np.float32)) == []
    assert diarizer.finish() == []
    assert Diarizer(PitchEncoder()).finish() == []


def test_invalid_input_is_refused():
    with pytest.raises(AudioError, match="finite"):
        Diarizer(PitchEncoder()).push(np.array([np.nan], np.float32))
    with pytest.raises(ConfigError, match="max_speakers"):
        Diarizer(PitchEncoder(), max_speakers=0)
