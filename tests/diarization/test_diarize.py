"""Tests of `diarize`, most of them with a simple replacement for the speech detector."""

import itertools

import numpy as np
import pytest

from ecapa_jax.diarization import clustering
from ecapa_jax.diarization.diarize import diarize, on_frames
from ecapa_jax.diarization.formats import SUFFIXES, as_text
from ecapa_jax.diarization.recordings import RereadableRecording, span_samples
from ecapa_jax.diarization.settings import DiarizationSettings
from ecapa_jax.errors import AudioError, ConfigError
from helpers.conversations import RATE, PitchEncoder, voice


def loud_frames(blocks):
    """Replaces the speech detector: frames with sound are speech, so that synthetic sounds can be used."""
    samples = np.concatenate(list(blocks))
    frames = np.pad(samples, (0, -len(samples) % 512)).reshape(-1, 512)
    return (np.abs(frames).max(axis=1) > 0.02).astype(np.float32), len(samples)


def make_talk():
    pause = np.zeros(RATE, np.float32)
    parts = [voice(4, 120, 1), pause, voice(4, 180, 2), pause, voice(4, 120, 3), pause, voice(4, 180, 4)]
    return np.concatenate(parts)


def run_diarize(recording, speakers=None, **options):
    return diarize(PitchEncoder(), recording, speakers, overlap=False, vad=loud_frames, **options)


def test_two_alternating_voices_are_separated():
    found = run_diarize(make_talk())
    assert [speaker.name for speaker in found.speakers] == ["speaker_1", "speaker_2"]
    assert [turn.speaker for turn in found.turns] == ["speaker_1", "speaker_2"] * 2
    for turn, start in zip(found.turns, (0, 5, 10, 15), strict=True):
        assert turn.start == pytest.approx(start, abs=0.2)
        assert turn.end == pytest.approx(start + 4, abs=0.2)
    assert found.duration == len(make_talk()) / RATE
    assert found.speakers[0].seconds == pytest.approx(8, abs=0.5)
    assert found.speakers[0].embedding.shape == (3,)


@pytest.mark.parametrize("speakers", [1, 2, 3, 5])
def test_given_number_of_speakers_is_used(speakers):
    assert len(run_diarize(make_talk(), speakers).speakers) == speakers


@pytest.mark.parametrize("speakers", [2, 3])
def test_given_number_of_speakers_is_used_for_one_word(speakers):
    word = np.concatenate([np.zeros(RATE, np.float32), voice(0.6, 150), np.zeros(RATE, np.float32)])
    found = run_diarize(word, speakers)
    assert len(found.speakers) == speakers
    assert {turn.speaker for turn in found.turns} == {speaker.name for speaker in found.speakers}


def test_one_word_gives_one_turn():
    word = np.concatenate([np.zeros(RATE, np.float32), voice(0.6, 150), np.zeros(RATE, np.float32)])
    found = run_diarize(word)
    assert len(found.turns) == 1
    assert found.turns[0].start == pytest.approx(1.0, abs=0.2)


def test_one_voice_gives_one_speaker():
    assert len(run_diarize(voice(60, 120)).speakers) == 1


def test_exclusive_turns_do_not_overlap():
    turns = run_diarize(make_talk()).exclusive
    assert all(first.end <= second.start for first, second in itertools.pairwise(turns))


def test_long_recording_read_in_parts_has_the_same_turns(tmp_path, monkeypatch):
    import soundfile

    from ecapa_jax.diarization import recordings

    soundfile.write(tmp_path / "a.wav", make_talk(), RATE, subtype="FLOAT")
    whole = run_diarize(str(tmp_path / "a.wav"))
    monkeypatch.setattr(recordings, "LONGEST_HELD", 1.0)
    parts = run_diarize(str(tmp_path / "a.wav"))
    assert parts.turns == whole.turns
    with open(tmp_path / "a.wav", "rb") as file:
        assert run_diarize(file).turns == whole.turns


def test_span_samples_do_not_depend_on_block_size():
    samples = np.arange(16000, dtype=np.float32)
    spans = np.array([[0, 10], [5, 20], [5, 6], [90, 100]])
    whole = list(span_samples([samples], spans, RATE, 400))
    for size in (1000, 37, 16000):
        blocks = np.split(samples, range(size, 16000, size))
        for one, other in zip(whole, span_samples(blocks, spans, RATE, 400), strict=True):
            np.testing.assert_array_equal(one, other)
    assert whole[1][0] == 800
    assert len(whole[2]) == 400  # 160 samples, repeated


def test_channel_option_selects_the_channel():
    both = np.stack([np.zeros(2 * RATE, np.float32), voice(2, 150)], axis=1)
    assert not run_diarize(both).turns
    assert run_diarize(both, channel=1).turns
    with pytest.raises(AudioError, match="channel 3"):
        run_diarize(both, channel=2)


@pytest.mark.parametrize("overlap", [False, True])
def test_silence_and_noise_have_no_speakers(overlap):
    rng = np.random.default_rng(0)
    for samples in (np.zeros(3 * RATE, np.float32), 0.01 * rng.standard_normal(3 * RATE).astype(np.float32)):
        found = diarize(PitchEncoder(), samples, overlap=overlap)
        assert found.turns == found.exclusive == found.speakers == []
        assert found.duration == 3.0


def test_invalid_input_is_refused():
    with pytest.raises(AudioError, match="nan"):
        run_diarize(np.full(RATE, np.nan, np.float32))
    with pytest.raises(ConfigError, match="speakers is 0"):
        run_diarize(make_talk(), 0)
    with pytest.raises(ConfigError, match="min_speakers"):
        run_diarize(make_talk(), min_speakers=3, max_speakers=2)
    with pytest.raises(ConfigError, match="one of them"):
        diarize(PitchEncoder(), make_talk(), overlap=False, vad=None)


def test_custom_clusterer_is_used():
    def cluster_into_two(embeddings, spans, count, settings):
        return clustering.spectral_clustering(embeddings, clustering.SpeakerCount(2))

    assert len(run_diarize(make_talk(), clusterer=cluster_into_two).speakers) == 2


@pytest.mark.parametrize("kind", SUFFIXES)
def test_every_format_contains_every_turn(kind):
    found = run_diarize(make_talk()).rename({"speaker_1": "Ann & <Bo>"}, {"speaker_1": 0.5})
    text = as_text(found, "talk", kind)
    assert text.count("speaker_2") == {"vtt": 4, "json": 3}.get(kind, 2)
    assert text.endswith("\n")


def test_probabilities_are_mapped_to_frames():
    assert len(on_frames(np.ones(4, np.float32), 4 * 512)) == 13
    assert len(on_frames(np.zeros(0, np.float32), 0)) == 0


def test_recording_can_be_read_at_two_rates():
    audio = RereadableRecording(voice(1, 150), RATE, "first")
    assert sum(map(len, audio.blocks(8000))) == RATE // 2
    assert sum(map(len, audio.blocks(RATE))) == RATE


def test_speech_too_short_for_a_turn_has_no_speaker():
    click = np.concatenate([np.zeros(RATE, np.float32), voice(0.02, 150), np.zeros(RATE, np.float32)])
    found = run_diarize(click, settings=DiarizationSettings(padding=0.0))
    assert (found.turns, found.exclusive, found.speakers) == ([], [], [])
