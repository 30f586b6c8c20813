"""Tests of the conversion of windows to turns with synthetic frames."""

import numpy as np
import pytest

from ecapa_jax.diarization.activity import CHUNK, Voices, cut_windows, runs
from ecapa_jax.diarization.settings import DiarizationSettings
from ecapa_jax.diarization.turns import (
    Labelled,
    Turn,
    frame_scores,
    make_turns,
    second_speakers,
    speaker_frames,
    speech_frames,
    stretches,
)

PLAIN = DiarizationSettings(padding=0.0, pause=0.3, shortest_turn=0.1, snap=0.75)


def make_voices(*chunks, hop=250, n_frames=None):
    """Makes chunks from {voice: [(start, end)]}, in frames of the recording, one dict for each chunk."""
    active = np.zeros((len(chunks), CHUNK, 3), bool)
    for index, chunk in enumerate(chunks):
        for voice, parts in chunk.items():
            for start, end in parts:
                active[index, max(start - index * hop, 0) : max(end - index * hop, 0), voice] = True
    starts = np.arange(len(chunks)) * hop
    return Voices(starts, active, n_frames or int(starts[-1]) + CHUNK)


def test_runs_cover_every_frame_once():
    values = np.array([0, 0, 1, 1, 1, 0, 2])
    assert runs(values) == [(0, 2, 0), (2, 5, 1), (5, 6, 0), (6, 7, 2)]
    assert runs(values[:0]) == []


def test_windows_cover_each_stretch():
    spans = cut_windows([(10, 60), (100, 430)], 150, 75)
    assert spans.tolist()[0] == [10, 60]  # a stretch shorter than a window gives one span
    covered = np.zeros(500, bool)
    for start, end in spans:
        covered[start:end] = True
    assert covered[10:60].all()
    assert covered[100:430].all()
    assert covered.sum() == 50 + 330


def test_speech_pauses_are_filled_and_clicks_dropped():
    probability = np.zeros(300, np.float32)
    probability[50:100] = probability[120:170] = 1.0  # a pause of 0.2 s
    probability[250:255] = 1.0  # 50 ms
    speech = speech_frames(probability, PLAIN)
    assert runs(speech.astype(np.int64)) == [(0, 50, 0), (50, 170, 1), (170, 300, 0)]
    padded = speech_frames(probability, DiarizationSettings(padding=0.08, pause=0.3))
    assert padded[42]
    assert not padded[41]


def test_voice_keeps_its_number_across_chunks():
    heard = make_voices({0: [(0, 600)], 1: [(600, 1000)]}, {2: [(250, 600)], 0: [(600, 1250)]})
    tracks = heard.tracks()
    assert len(np.unique(tracks[:600])) == 1
    assert len(np.unique(tracks[600:1250])) == 1
    assert tracks[0] != tracks[700]


def test_stretches_end_at_a_change_of_voice():
    heard = make_voices({0: [(0, 400)], 1: [(400, 1000)]})
    speech = np.ones(1000, bool)
    assert stretches(speech, heard.tracks(), PLAIN) == [(0, 400), (400, 1000)]
    assert stretches(speech, None, PLAIN) == [(0, 1000)]


def label_windows(parts):
    """Makes windows of two speakers with orthogonal embeddings."""
    spans = np.array([part[:2] for part in parts])
    labels = np.array([part[2] for part in parts])
    return Labelled(spans, np.eye(4, dtype=np.float32)[labels], labels)


def test_frames_have_the_speaker_of_the_surrounding_windows():
    windows = label_windows([(0, 150, 0), (75, 225, 0), (225, 375, 1), (300, 450, 1)])
    frames = speaker_frames(windows, np.ones(450, bool), None, PLAIN)
    assert runs(frames) == [(0, 225, 0), (225, 450, 1)]


def test_speaker_change_moves_to_the_nearest_change_of_voice():
    windows = label_windows([(0, 225, 0), (225, 450, 1)])
    tracks = np.repeat([5, 9], [250, 200])
    frames = speaker_frames(windows, np.ones(450, bool), tracks, PLAIN)
    assert runs(frames) == [(0, 250, 0), (250, 450, 1)]
    far = np.repeat([5, 9], [350, 100])
    assert runs(speaker_frames(windows, np.ones(450, bool), far, PLAIN)) == [(0, 225, 0), (225, 450, 1)]


def test_second_speaker_of_an_overlap_is_the_neighbour():
    windows = label_windows([(0, 500, 0), (500, 1000, 1)])
    heard = make_voices({0: [(0, 520)], 1: [(450, 1000)]})
    speech = np.ones(1000, bool)
    frames = speaker_frames(windows, speech, None, PLAIN)
    second = second_speakers(frames, heard, frame_scores(windows, 1000), PLAIN)
    assert (second[460:500] == 1).all()
    assert (second[:440] == -1).all()
    turns = make_turns(frames, second, ["a", "b"], PLAIN)
    assert [turn.speaker for turn in turns] == ["a", "b"]
    assert turns[1].start < turns[0].end
    exclusive = make_turns(frames, None, ["a", "b"], PLAIN)
    assert exclusive == [Turn(0.0, 5.0, "a"), Turn(5.0, 10.0, "b")]


def test_pause_is_not_filled_if_another_speaker_talks():
    frames = np.repeat([0, 1, 0], [100, 20, 100])
    turns = make_turns(frames, None, ["a", "b"], PLAIN)
    assert [tuple(turn) for turn in turns] == [(0.0, 1.0, "a"), (1.0, 1.2, "b"), (1.2, 2.2, "a")]


@pytest.mark.parametrize("n", [0, 1])
def test_one_frame_or_none_has_no_speech(n):
    assert not speech_frames(np.zeros(n, np.float32), PLAIN).any()
