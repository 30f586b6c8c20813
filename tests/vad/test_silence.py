"""Tests of `cut_silence`, and of the `vad` option of embed, verify, evaluate, prepare and corpora."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

import ecapa_jax
from ecapa_jax import api, vad
from ecapa_jax.audio.load import LongAudio, open_audio
from ecapa_jax.corpus.shard import embed_recordings
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import TrainingError
from ecapa_jax.evaluation.run import score_lists
from ecapa_jax.evaluation.trials import read_trials
from ecapa_jax.train.data.manifest import read_manifest
from ecapa_jax.train.data.prepare import prepare
from ecapa_jax.vad import recordings as vad_recordings
from helpers.bundles import make
from helpers.cli import run, run_refused, write_wav
from helpers.detector import AUDIO
from helpers.nonspeech import RATE, nonspeech

FILE = AUDIO / "slt_1.flac"


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder.from_bundle(make())


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    return soundfile.read(FILE, dtype="float32")[0]


@pytest.fixture(scope="module")
def voice_with_pause(voice) -> np.ndarray:
    """Half of a sentence, two seconds of faint noise, and the other half of the sentence."""
    return np.concatenate([voice[:40000], 0.002 * nonspeech("white", 1, 2.0), voice[40000:]])


@pytest.fixture
def wav(tmp_path, voice_with_pause):
    return write_wav(tmp_path / "paused.wav", voice_with_pause)


def expected(samples: np.ndarray) -> np.ndarray:
    spans = vad.speech_segments(samples)
    return np.concatenate([samples[round(one.start * RATE) : round(one.end * RATE)] for one in spans])


def test_audio_between_segments_is_removed(voice, voice_with_pause):
    cut = vad.cut_silence(voice_with_pause, RATE)
    np.testing.assert_array_equal(cut, expected(voice_with_pause))
    assert len(cut) < len(voice_with_pause) - 1.5 * RATE
    assert vad.cut_silence(nonspeech("hum", 1), RATE) is None


def test_other_rates_are_cut_at_the_same_times(voice_with_pause):
    slow = voice_with_pause[::2].copy()
    cut = vad.cut_silence(slow, RATE // 2)
    assert len(slow) - len(cut) > 1.5 * RATE / 2


def test_long_recording_stays_a_stream(wav, voice_with_pause, monkeypatch):
    monkeypatch.setattr(vad_recordings, "LONGEST_IN_NUMPY", 50)
    audio = open_audio(wav, sample_rate=None, target_rate=RATE, channel="first", longest=1.0)
    assert isinstance(audio, LongAudio)
    cut = vad.cut_silence(audio, RATE)
    assert isinstance(cut, LongAudio)
    whole = soundfile.read(wav, dtype="float32")[0]
    for _ in range(2):  # each iteration reads the file again
        np.testing.assert_allclose(np.concatenate(list(cut)), expected(whole), atol=1e-4)


def test_silence_is_cut_across_block_boundaries(voice_with_pause):
    """The reader has small blocks, some of which are completely speech or completely silence."""

    def reader():
        for start in range(0, len(voice_with_pause), 700):
            yield RATE, voice_with_pause[start : start + 700]

    cut = vad.cut_silence(LongAudio("made", RATE, reader), RATE)
    np.testing.assert_array_equal(np.concatenate(list(cut)), expected(voice_with_pause))


def test_embeddings_equal_those_of_the_cut_recording(encoder, wav):
    whole = soundfile.read(wav, dtype="float32")[0]
    reference = encoder.embed(expected(whole))
    np.testing.assert_allclose(encoder.embed(wav, vad=True), reference, atol=1e-5)
    np.testing.assert_array_equal(encoder.read(wav, vad=True), expected(whole))
    assert np.abs(encoder.embed(wav) - reference).max() > 1e-3
    same = encoder.verify(wav, FILE, vad=True)
    assert same.score == pytest.approx(encoder.verify(expected(whole), vad.cut_silence(encoder.read(FILE), RATE)).score)


def test_recording_without_speech_is_embedded_completely_with_a_warning(encoder):
    hum = nonspeech("hum", 1)
    with pytest.warns(ecapa_jax.NoSpeechWarning, match="array holds hardly any speech"):
        found = encoder.embed(hum, vad=True)
    np.testing.assert_array_equal(found, encoder.embed(hum))
    with pytest.warns(ecapa_jax.NoSpeechWarning):
        np.testing.assert_array_equal(encoder.read(hum, vad=True), hum)


def test_corpus_row_without_speech_is_an_error(encoder, wav):
    found = embed_recordings(encoder, [str(wav), nonspeech("hum", 1)], vad=True)
    np.testing.assert_allclose(found.embeddings[:1], encoder.embed(wav, vad=True), atol=1e-5)
    assert found.errors[0] is None
    assert "nobody is heard to speak" in found.errors[1]
    assert embed_recordings(encoder, [nonspeech("hum", 1)]).errors == [None]


@pytest.fixture
def one_encoder(monkeypatch, encoder) -> None:
    monkeypatch.setattr(api, "load", lambda *_, **__: encoder)


@pytest.mark.usefixtures("one_encoder")
def test_embed_and_verify_have_the_option(capsys, tmp_path, wav, encoder):
    out = tmp_path / "o.npz"
    assert run(capsys, "embed", wav, "-o", out, "--vad").code == 0
    np.testing.assert_array_equal(np.load(out)["embeddings"], encoder.embed(wav, vad=True))
    answer = run(capsys, "verify", wav, FILE, "--vad", "--json").json
    assert answer["score"] == pytest.approx(encoder.verify(wav, FILE, vad=True).score)
    assert "--vad" in run_refused(capsys, tmp_path, "embed", wav, "-o", tmp_path / "w.npz", "--vad", "--window", "1")


@pytest.mark.usefixtures("one_encoder")
def test_corpus_with_and_without_vad_need_different_folders(capsys, tmp_path, wav):
    pytest.importorskip("pyarrow")
    (tmp_path / "list.txt").write_text(f"{wav}\n")
    corpus = ["embed", "--manifest", tmp_path / "list.txt", "--output", tmp_path / "corpus"]
    assert run(capsys, *corpus, "--vad", "--quiet").code == 0
    assert run(capsys, *corpus, "--vad", "--quiet").code == 0
    assert "one of the two runs has --vad" in run(capsys, *corpus, "--quiet").err
    other = [*corpus[:-1], tmp_path / "other"]
    assert run(capsys, *other, "--quiet").code == 0
    assert '"vad"' not in (tmp_path / "other" / "_corpus.json").read_text()  # the same as written by earlier versions
    assert "one of the two runs has --vad" in run(capsys, *other, "--vad", "--quiet").err


def test_evaluation_caches_both_kinds_separately(encoder, tmp_path, wav):
    (tmp_path / "trials.txt").write_text(f"1 {wav.name} b.wav\n")
    write_wav(tmp_path / "b.wav", soundfile.read(FILE, dtype="float32")[0])
    trials = [read_trials(tmp_path / "trials.txt")]
    cache = tmp_path / "cache"
    scores = [score_lists(encoder, trials, tmp_path, cache, vad=cut)[0].scores for cut in (False, True, False)]
    plain, cut, again = (next(iter(kinds.values()))[0] for kinds in scores)
    assert plain == again
    assert cut == pytest.approx(encoder.verify(wav, tmp_path / "b.wav", vad=True).score, abs=1e-5)
    assert cut != plain


def test_prepare_writes_files_without_silence(tmp_path, voice_with_pause):
    pytest.importorskip("array_record")
    for name, samples in {
        "a/1": voice_with_pause,
        "a/2": voice_with_pause[::-1].copy(),
        "b/1": nonspeech("hum", 1),
    }.items():
        path = tmp_path / "source" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    with pytest.raises(TrainingError, match="--shards"):
        prepare(tmp_path / "source", tmp_path / "none", vad=True)
    made = prepare(tmp_path / "source", tmp_path / "cut", shard_utterances=10, vad=True)
    manifest = read_manifest(made.manifest)
    assert made.problems == {"no speech": 1}
    assert manifest.samples[manifest.ids.index("a/1.wav")] == len(expected(voice_with_pause))
