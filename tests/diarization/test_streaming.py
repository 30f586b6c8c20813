"""The stream: whatever the pieces, the same turns; and memory that does not grow with what is past."""

import numpy as np
import pytest

from ecapa_jax.diarization.streaming import Diarizer
from ecapa_jax.errors import AudioError, ConfigError
from helpers.conversations import RATE, PitchEncoder, voice


@pytest.fixture
def loud(monkeypatch):
    """Speech is what is loud: the made-up voices are no speech to the network."""
    from ecapa_jax.vad import in_numpy

    def advance(weights, samples, state):
        return (np.abs(samples.reshape(-1, 512)).max(axis=1) > 0.02).astype(np.float32), state

    monkeypatch.setattr(in_numpy, "advance", advance)


def talk():
    pause = np.zeros(RATE, np.float32)
    return np.concatenate([voice(5, 120, 1), pause, voice(5, 180, 2), pause, voice(5, 120, 3)])


def test_turns_come_while_it_speaks(loud):
    diarizer = Diarizer(PitchEncoder())
    samples, seen = talk(), []
    for start in range(0, len(samples), 1600):
        turns = diarizer.push(samples[start : start + 1600])
        seen.append(max((turn.end for turn in turns), default=0.0))
    late = [begun for begun in (5.0, 11.0) if seen[round((begun + 2) * 10)] < begun - 0.2]
    assert not late  # two seconds after a turn it is there
    found = diarizer.finish()
    assert [turn.speaker for turn in found] == ["speaker_1", "speaker_2", "speaker_1"]
    for turn, start in zip(found, (0, 6, 12), strict=True):
        assert turn.start == pytest.approx(start, abs=0.5)
        assert turn.end == pytest.approx(start + 5, abs=0.5)


@pytest.mark.parametrize("size", [160, 5000, 400_000])
def test_pieces_do_not_matter(loud, size):
    samples = talk()
    one, other = Diarizer(PitchEncoder()), Diarizer(PitchEncoder())
    one.push(samples)
    for start in range(0, len(samples), size):
        other.push(samples[start : start + size])
    assert one.finish() == other.finish()


def test_what_is_past_is_forgotten(loud):
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


def test_bad_input():
    with pytest.raises(AudioError, match="finite"):
        Diarizer(PitchEncoder()).push(np.array([np.nan], np.float32))
    with pytest.raises(ConfigError, match="max_speakers"):
        Diarizer(PitchEncoder(), max_speakers=0)
