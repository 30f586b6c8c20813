"""Tests of `Diarizer`: a stream has the turns of a recording, in any blocks, and memory does not grow with time."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from ecapa_jax.diarization import stream_windows
from ecapa_jax.diarization.activity import cut_windows
from ecapa_jax.diarization.diarize import diarize, on_frames
from ecapa_jax.diarization.settings import DiarizationSettings, StreamSettings
from ecapa_jax.diarization.stream_windows import WindowCutter
from ecapa_jax.diarization.streaming import Diarizer
from ecapa_jax.diarization.turns import frames_of, speech_frames, stretches
from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.vad import in_numpy

RATE = 16000
LEVELS = 0.1 * np.arange(1, 7)
"""The sound of a speaker of these tests is noise around a level."""


class LevelEncoder:
    """Replaces a `SpeakerEncoder`: an embedding shows the speakers whose levels a window has, and some noise."""

    sample_rate, minimum_samples = RATE, 400
    scorer = SimpleNamespace(embedding_mean=None)
    config = SimpleNamespace(fbank=SimpleNamespace(channel="first"))

    def embed_stream(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        for index, waveform in enumerate(waveforms):
            assert len(waveform) >= self.minimum_samples
            nearest = np.abs(waveform[:, None] - LEVELS[None]).argmin(axis=1)
            shares = np.bincount(nearest[waveform > 0.02], minlength=len(LEVELS)) / len(waveform)
            noise = np.random.default_rng(int(np.abs(waveform).sum() * 1000)).standard_normal(16) / 8
            yield (index,), np.concatenate([shares, noise]).astype(np.float32)[None]


def speak(speaker, seconds, seed=0):
    noise = np.random.default_rng(seed).uniform(-0.02, 0.02, round(seconds * RATE))
    return (LEVELS[speaker] + noise).astype(np.float32)


def pause(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def make_talk(speakers, seed=0):
    """Concatenates turns of 1 to 6 seconds with pauses between most of them; also returns the speaker of each frame."""
    rng = np.random.default_rng(seed)
    parts, labels = [], []
    for number, speaker in enumerate(speakers):
        for who, part in (
            (speaker, speak(speaker, rng.integers(100, 600) / 100, number)),
            (-1, pause(rng.choice([0, 0.2, 0.5, 1.5]))),
        ):
            parts.append(part)
            labels.append(np.full(len(part) // 160, who))
    return np.concatenate(parts), np.concatenate(labels)


@pytest.fixture(autouse=True)
def detect_loud_frames(monkeypatch):
    """Replaces the speech detector: loud frames are speech, because the network does not accept these sounds."""

    def advance(weights, samples, state):
        return (np.abs(samples.reshape(-1, 512)).max(axis=1) > 0.02).astype(np.float32), state

    monkeypatch.setattr(in_numpy, "advance", advance)


def detect_in_recording(blocks):
    samples = np.concatenate(list(blocks))
    padded = np.pad(samples, (0, -len(samples) % 512))
    return in_numpy.advance(None, padded, None)[0], len(samples)


def run_stream(samples, sizes, **options):
    """Pushes samples in blocks of the given sizes, again and again; returns what each call returns."""
    diarizer, results, at = Diarizer(LevelEncoder(), **options), [], 0
    while at < len(samples):
        size = sizes[len(results) % len(sizes)]
        results.append((at + size, diarizer.push(samples[at : at + size])))
        at += size
    results.append((len(samples), diarizer.finish()))
    return results


def frames_by_speaker(turns, n_frames):
    labels = np.full(n_frames, -1)
    for turn in turns:
        labels[frames_of(turn.start) : frames_of(turn.end)] = int(turn.speaker.removeprefix("speaker_")) - 1
    return labels


def share_wrong(found, truth):
    """Share of frames with a wrong speaker, after the best assignment of found to true speakers."""
    table = np.zeros((found.max() + 2, truth.max() + 2))
    np.add.at(table, (found, truth), 1)
    rows, columns = linear_sum_assignment(-table[:-1, :-1])
    return 1 - (table[rows, columns].sum() + table[-1, -1]) / len(found)


@pytest.mark.parametrize("seed", range(8))
def test_windows_are_those_of_the_whole_recording(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    n_samples = int(rng.integers(1, 40 * RATE))
    n_probabilities = -(-n_samples // 512)
    lengths = rng.integers(1, rng.choice([4, 20, 80]), n_probabilities)
    levels = rng.choice([0.0, 0.1, 0.4, 0.9], n_probabilities)
    probabilities = np.repeat(levels, lengths)[:n_probabilities].astype(np.float32)
    taken = [0]

    def advance(weights, samples, state):
        first = taken[0]
        taken[0] += len(samples) // 512
        return probabilities[first : taken[0]], state

    monkeypatch.setattr(in_numpy, "advance", advance)
    monkeypatch.setattr(stream_windows, "holds_speech", lambda samples, rate: False)
    settings, samples = DiarizationSettings(), np.arange(n_samples).astype(np.float32)
    cutter, found, at = WindowCutter(settings), [], 0
    while at < n_samples:
        size = int(rng.choice([1, 100, 512, 3000, 100_000]))
        found += cutter.push(samples[at : at + size])
        at += size
    found += cutter.finish()
    speech = speech_frames(on_frames(probabilities, n_samples), settings)
    expected = cut_windows(stretches(speech, None, settings), frames_of(settings.window), frames_of(settings.hop))
    np.testing.assert_array_equal(np.array([(one.start, one.end) for one in found]).reshape(-1, 2), expected)
    for one in found:
        np.testing.assert_array_equal(one.samples, samples[one.start * 160 : one.end * 160])


def test_turns_are_those_of_the_whole_recording():
    samples, _ = make_talk([0, 1, 0, 2, 1, 2, 0, 1, 3, 0, 3, 1])
    whole = diarize(LevelEncoder(), samples, overlap=False, vad=detect_in_recording)
    found = run_stream(samples, [1600])[-1][1]
    assert len(found) > 8
    assert [(turn.start, turn.end) for turn in found] == [(turn.start, turn.end) for turn in whole.turns]
    names = {(one.speaker, other.speaker) for one, other in zip(found, whole.turns, strict=True)}
    assert len(names) == len({turn.speaker for turn in found}) == 4


@pytest.mark.parametrize("sizes", [[160], [5000, 1, 777, 20_000], [10_000_000]])
def test_block_size_does_not_change_the_turns(sizes):
    samples, _ = make_talk([0, 1, 0, 2, 1, 0, 2, 1], seed=1)
    settings = StreamSettings(block_windows=16)  # so that windows are closed
    expected = run_stream(samples, [8000], settings=settings)
    found = run_stream(samples, sizes, settings=settings)
    assert found[-1] == expected[-1]
    same = [time for time, turns in found if (time, turns) in expected]
    assert same == sorted({time for time, _ in found} & {time for time, _ in expected})


def test_turns_are_at_most_two_seconds_behind():
    samples, truth = make_talk([0, 1, 0, 1, 1, 0, 1, 0, 1, 0], seed=2)
    late = []
    for time, turns in run_stream(samples, [1600])[:-1]:
        labels = frames_by_speaker(turns, len(truth))
        known = truth[: max(time // 160 - 200, 0)]
        late += np.flatnonzero((known >= 0) & (labels[: len(known)] < 0)).tolist()
    assert not late


def test_speakers_keep_their_names_and_old_turns_their_speakers():
    speakers = [0, 1, 0, 1, 2, 0, 1, 2] * 3 + [0] * 15 + [3, 2, 3, 1, 3, 2, 3, 1] * 2
    samples, truth = make_talk(speakers, seed=3)
    settings = StreamSettings(block_windows=60)
    results = run_stream(samples, [RATE], settings=settings)
    assert share_wrong(frames_by_speaker(results[-1][1], len(truth)), truth) < 0.1
    assert len({turn.speaker for turn in results[-1][1]}) == 4
    # 60 windows are less than 90 s.
    last = frames_by_speaker(results[-1][1], len(truth))
    for time, turns in results:
        old = max(time // 160 - 9000, 0)
        np.testing.assert_array_equal(frames_by_speaker(turns, len(truth))[:old], last[:old])


def test_memory_does_not_grow_with_time():
    settings = StreamSettings(block_windows=24)
    diarizer = Diarizer(LevelEncoder(), settings=settings)
    for number in range(40):
        for block in (speak(number % 3, 4, number), pause(number % 3)):
            diarizer.push(block)
            assert len(diarizer._cutter._samples) < 3 * RATE
            assert len(diarizer._cutter._probabilities) < 16
            assert len(diarizer._speakers.spans) < settings.block_windows
            assert len(diarizer._pieces) <= settings.block_windows
    assert len(diarizer.finish()) > 30
    assert len(diarizer._speakers._totals) == 3


def test_speech_without_a_pause_is_closed_too():
    settings = StreamSettings(block_windows=24)
    samples = np.concatenate([speak(number % 2, 5, number) for number in range(20)])
    results = run_stream(samples, [RATE], settings=settings)
    truth = np.repeat(np.arange(20) % 2, 500)
    assert share_wrong(frames_by_speaker(results[-1][1], len(truth)), truth) < 0.1


@pytest.mark.parametrize("most", [1, 2, 3])
def test_there_are_at_most_so_many_speakers(most):
    samples, _ = make_talk([0, 1, 2, 3, 4, 5] * 3, seed=4)
    for block_windows in (16, 1500):
        for _, turns in run_stream(
            samples, [RATE], max_speakers=most, settings=StreamSettings(block_windows=block_windows)
        ):
            assert {turn.speaker for turn in turns} <= {f"speaker_{number + 1}" for number in range(most)}


def test_silence_has_no_turns():
    diarizer = Diarizer(LevelEncoder())
    assert diarizer.push(pause(3)) == []
    assert diarizer.finish() == []
    assert Diarizer(LevelEncoder()).finish() == []


def test_sounds_a_little_like_speech_are_turns_only_beside_speech(monkeypatch):
    probability = [0.3]
    monkeypatch.setattr(
        in_numpy,
        "advance",
        lambda weights, samples, state: (np.full(len(samples) // 512, probability[0], np.float32), state),
    )
    monkeypatch.setattr(stream_windows, "holds_speech", lambda samples, rate: False)
    diarizer = Diarizer(LevelEncoder())
    assert diarizer.push(speak(0, 4)) == []
    probability[0] = 0.9
    (turn,) = diarizer.push(speak(0, 4))
    assert turn.start == 0


def test_quiet_speech_is_heard(monkeypatch):
    monkeypatch.setattr(
        in_numpy, "advance", lambda weights, samples, state: (np.full(len(samples) // 512, 0.3, np.float32), state)
    )
    monkeypatch.setattr(stream_windows, "holds_speech", lambda samples, rate: True)
    assert len(Diarizer(LevelEncoder()).push(speak(0, 4))) == 1


def test_invalid_input_is_refused():
    with pytest.raises(AudioError, match="finite"):
        Diarizer(LevelEncoder()).push(np.array([np.nan], np.float32))
    with pytest.raises(ConfigError, match="max_speakers"):
        Diarizer(LevelEncoder(), max_speakers=0)
    diarizer = Diarizer(LevelEncoder())
    turns = diarizer.finish()
    assert diarizer.finish() == turns
    with pytest.raises(AudioError, match="finished"):
        diarizer.push(pause(1))
