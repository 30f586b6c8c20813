"""Tests of the speech gate, and of its use by verify, enroll and identify in all interfaces."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import soundfile

import ecapa_jax
from ecapa_jax import api
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import AudioError
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.vad import holds_speech, speech_seconds
from ecapa_jax.vad import recordings as vad_recordings
from helpers.bundles import make
from helpers.cli import run, run_refused, write_wav
from helpers.detector import AUDIO
from helpers.nonspeech import RATE, SOUNDS, nonspeech
from helpers.sounds import encode

SPEECH = sorted(AUDIO.glob("*.flac"))
FILE = AUDIO / "slt_1.flac"


def samples_of(path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder.from_bundle(make())


@pytest.fixture
def one_encoder(monkeypatch, encoder) -> None:
    monkeypatch.setattr(api, "load", lambda *_, **__: encoder)


@pytest.fixture
def hum(tmp_path):
    return write_wav(tmp_path / "hum.wav", nonspeech("hum", 3))


@pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
@pytest.mark.parametrize("gain", [0, -20, -50, 15])
def test_speech_at_any_level_is_accepted(path, gain):
    assert holds_speech(np.clip(samples_of(path) * 10 ** (gain / 20), -1, 1).astype(np.float32), RATE)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_speech_at_other_sample_rates_is_accepted(rate):
    import soxr

    assert holds_speech(soxr.resample(samples_of(FILE), RATE, rate), rate)


@pytest.mark.parametrize("kind", sorted(SOUNDS))
def test_other_sounds_are_rejected(kind):
    assert [seed for seed in range(100, 104) if holds_speech(nonspeech(kind, seed), RATE)] == []


@pytest.mark.parametrize("gain", [0, -30, 20])
def test_other_sounds_are_rejected_at_any_level(gain):
    heard = {kind: holds_speech(np.clip(nonspeech(kind, 7) * 10 ** (gain / 20), -1, 1), RATE) for kind in SOUNDS}
    assert [kind for kind, answer in heard.items() if answer] == []


@pytest.mark.parametrize("n_samples", [1, 300, 511, 512, 513, 1100, 1600])
def test_very_short_sound_is_rejected(n_samples):
    assert not holds_speech(samples_of(FILE)[8000 : 8000 + n_samples], RATE)
    assert not holds_speech(np.zeros(n_samples, np.float32), RATE)


def test_half_a_second_of_speech_at_any_position_is_accepted(monkeypatch):
    word = samples_of(FILE)[8000:19000]
    for before in (0.0, 3.9, 20.0):
        quiet = nonspeech("white", 1, before + 1) * 0.01
        assert holds_speech(np.concatenate([quiet, word, quiet]), RATE)
    monkeypatch.setattr(vad_recordings, "LONGEST_IN_NUMPY", 200)  # longer recordings run in JAX
    assert holds_speech(np.concatenate([nonspeech("pink", 1, 20.0), word]), RATE)
    assert not holds_speech(nonspeech("pink", 1, 20.0), RATE)


def test_speech_seconds_count_the_speech_frames():
    seconds = speech_seconds(FILE)
    assert 3.5 < seconds < 4.925
    assert speech_seconds(samples_of(FILE)) == seconds
    assert 1.0 <= speech_seconds(np.tile(samples_of(FILE), 4), at_most=1.0) < seconds
    assert speech_seconds(nonspeech("hum", 1)) == 0


def test_verify_warns_and_reports_missing_speech(encoder):
    hum = nonspeech("hum", 3)
    with pytest.warns(ecapa_jax.NoSpeechWarning, match="array holds hardly any speech") as caught:
        answer = encoder.verify(samples_of(FILE), hum)
    assert len(caught) == 1
    assert answer.speech == (True, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encoder.verify(SPEECH[0], SPEECH[1]).speech == (True, True)


def test_digital_silence_warns_once(encoder):
    with pytest.warns(ecapa_jax.SilenceWarning, match="no signal") as caught:
        answer = encoder.verify(np.zeros(RATE, np.float32), samples_of(FILE))
    assert [one.category for one in caught] == [ecapa_jax.SilenceWarning]
    assert answer.speech == (False, True)


def test_muted_microphones_are_rejected(encoder, tmp_path):
    """The sounds are dither of one bit, and one click in digital silence."""
    for kind in ("dither", "click"):
        with pytest.warns(ecapa_jax.NoSpeechWarning, match="array"):
            assert encoder.verify(nonspeech(kind, 0), nonspeech(kind, 1)).speech == (False, False)
    with SpeakerStore.open(tmp_path / "s.db", encoder) as store:
        with pytest.raises(AudioError, match="array"):
            store.enroll("Ann", [samples_of(FILE), nonspeech("dither", 0)])
        assert store.speakers() == []
        with pytest.raises(AudioError, match="array"):
            store.identify(nonspeech("beeps", 0))
        with pytest.raises(AudioError, match="array: holds less than half a second of speech"):
            store.enroll("Ann", [nonspeech("hum", 0)])
        assert store.enroll("Ann", [nonspeech("hum", 0)], any_sound=True).added == 1
        assert store.identify(nonspeech("hum", 0), any_sound=True).candidates[0].name == "Ann"


@pytest.mark.usefixtures("one_encoder")
def test_command_line_warns_or_refuses(capsys, tmp_path, hum):
    verified = run(capsys, "verify", FILE, hum)
    assert verified.code == 0
    assert verified.err.startswith(f"ecapa-jax: warning: {hum} holds hardly any speech")
    assert verified.err.count("\n") == 1
    assert run(capsys, "verify", FILE, hum, "--json", "--quiet").json["speech"] == [True, False]
    store = ["--store", tmp_path / "team.db"]
    assert "half a second of speech" in run_refused(capsys, tmp_path, "enroll", "Ann", FILE, hum, *store)
    assert run(capsys, "enroll", "Ann", FILE, *store).code == 0
    assert "half a second of speech" in run_refused(capsys, tmp_path, "identify", hum, *store)
    assert run(capsys, "enroll", "Hum", hum, *store, "--any-sound").out == "Hum: 1 recording added\n"
    assert run(capsys, "identify", hum, *store, "--any-sound", "--json").json["candidates"][0]["name"] == "Hum"


def test_http_warns_or_refuses(encoder, tmp_path):
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from helpers.serving import client

    hum = ("hum.wav", encode(nonspeech("hum", 3)))
    voice = ("voice.flac", FILE.read_bytes())
    store = SpeakerStore.open(tmp_path / "a.db", encoder)
    with client(encoder, store=store) as talking:
        assert talking.post("/v1/verify", files={"a": voice, "b": hum}).json()["speech"] == [True, False]
        for path, data in (("/v1/enroll", {"name": "Ann"}), ("/v1/identify", {})):
            refusal = talking.post(path, files={"file": hum}, data=data)
            assert refusal.status_code == 422
            assert refusal.json()["detail"].startswith("hum.wav: holds less than half a second of speech")
        assert talking.get("/v1/speakers").json() == []
        assert talking.post("/v1/embed", files={"file": hum}).status_code == 200
        assert talking.post("/v1/enroll", files={"file": voice}, data={"name": "Ann"}).json()["added"] == 1
    store = SpeakerStore.open(tmp_path / "b.db", encoder)
    with client(encoder, store=store, any_sound=True) as talking:
        assert talking.post("/v1/enroll", files={"file": hum}, data={"name": "Hum"}).json()["added"] == 1
