"""Tests of POST /v1/diarize: turns as JSON or text, names from the store, and the limits of the service."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ecapa_jax.diarization import diarize as module
from ecapa_jax.diarization.formats import SUFFIXES, as_text
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.serve import service
from helpers.serving import TestClient, client
from helpers.sounds import encode

AUDIO = Path(__file__).parents[2] / "examples" / "audio"
RATE = 16000
diarize = functools.partial(module.diarize, overlap=False)  # the overlap network compiles slowly


@pytest.fixture(autouse=True)
def _without_overlap(monkeypatch) -> None:
    monkeypatch.setattr(service, "diarize", diarize)


@pytest.fixture(scope="module")
def talk(encoder) -> np.ndarray:
    pause = np.zeros(RATE // 2, np.float32)
    spoken = [encoder.read(AUDIO / name) for name in ("slt_1.flac", "awb_1.flac")]
    return np.concatenate([part for each in spoken for part in (each, pause)])


@pytest.fixture(scope="module")
def wav(talk) -> tuple[str, bytes]:
    return "talk.wav", encode(talk, subtype="FLOAT")


@pytest.fixture(scope="module")
def api(encoder: SpeakerEncoder) -> Iterator[TestClient]:
    with client(encoder) as talking:
        yield talking


def error_detail(response, status: int) -> str:
    assert response.status_code == status, response.text
    (text,) = response.json().values()
    assert "\n" not in text
    return text


def test_json_equals_the_library(api, encoder, talk, wav) -> None:
    answer = api.post("/v1/diarize", files={"file": wav}, data={"speakers": "2"}).json()
    expected = diarize(encoder, talk, 2)
    assert (answer["recording"], answer["model"]) == ("talk", "small")
    assert answer["duration"] == pytest.approx(len(talk) / RATE, abs=1e-3)
    for kind in ("turns", "exclusive"):
        rows = [(turn["start"], turn["end"], turn["speaker"]) for turn in answer[kind]]
        assert rows == [(round(t.start, 3), round(t.end, 3), t.speaker) for t in getattr(expected, kind)]
        assert rows
    assert [(one["name"], one["seconds"], one["score"]) for one in answer["speakers"]] == [
        (one.name, one.seconds, None) for one in expected.speakers
    ]


@pytest.mark.parametrize("kind", sorted(set(SUFFIXES) - {"json"}))
def test_text_formats_equal_the_library(api, encoder, talk, wav, kind) -> None:
    answer = api.post("/v1/diarize", files={"file": wav}, data={"speakers": "2", "format": kind, "exclusive": "true"})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == as_text(diarize(encoder, talk, 2), "talk", kind, exclusive=True)


@pytest.mark.parametrize(("bounds", "count"), [({"speakers": 1}, 1), ({"speakers": 3}, 3), ({"min_speakers": 4}, 4)])
def test_number_of_speakers_is_respected(api, wav, bounds, count) -> None:
    assert len(api.post("/v1/diarize", files={"file": wav}, data=bounds).json()["speakers"]) >= count


def test_enrolled_speakers_are_named(encoder, talk, wav, tmp_path) -> None:
    with SpeakerStore.open(tmp_path / "team.db", encoder) as store, client(encoder, store=store) as api:
        found = diarize(encoder, talk, 1).speakers[0]
        store.enroll_embeddings(["Ann"], found.embedding[None])
        answer = api.post("/v1/diarize", files={"file": wav}, data={"speakers": "1"}).json()
        (speaker,) = answer["speakers"]
        assert speaker["name"] == "Ann"
        assert speaker["score"] == pytest.approx(1, abs=1e-4)
        assert {turn["speaker"] for turn in answer["turns"] + answer["exclusive"]} == {"Ann"}
        strict = {"speakers": "2", "threshold": "1", "format": "csv"}
        assert "Ann" not in api.post("/v1/diarize", files={"file": wav}, data=strict).text
        wrong = api.post("/v1/diarize", files={"file": wav}, data={"threshold": "7"})
        assert "[-1, 1]" in error_detail(wrong, 422)


def test_recording_without_speech_has_no_turns(api) -> None:
    time = np.arange(3 * RATE) / RATE
    music = encode(np.float32(0.2) * sum(np.sin(2 * np.pi * f * time) for f in (220, 277.2, 329.6)).astype(np.float32))
    answer = api.post("/v1/diarize", files={"file": ("hum.wav", music)}).json()
    assert (answer["turns"], answer["exclusive"], answer["speakers"], answer["duration"]) == ([], [], [], 3.0)
    assert api.post("/v1/diarize", files={"file": ("hum.wav", music)}, data={"format": "srt"}).text == ""


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"speakers": "0"}, "speakers: "),
        ({"speakers": "101"}, "speakers: "),
        ({"speakers": "two"}, "speakers: "),
        ({"min_speakers": "5", "max_speakers": "2"}, "min_speakers is 5 and max_speakers 2"),
        ({"format": "docx"}, "format: "),
        ({"exclusive": "perhaps"}, "exclusive: "),
    ],
)
def test_invalid_values_are_refused(api, wav, fields, why) -> None:
    assert why in error_detail(api.post("/v1/diarize", files={"file": wav}, data=fields), 422)


def test_invalid_recordings_are_refused(api, talk) -> None:
    loud = np.resize(talk, 61 * RATE)
    broken = talk.copy()
    broken[50] = np.nan
    for content, status, why in (
        (b"dear diary", 422, "is not audio"),
        (encode(np.zeros(RATE, np.float32)), 422, "silent"),
        (encode(loud), 413, "longer than 60 seconds"),
        (encode(broken, subtype="FLOAT"), 422, "not finite"),
    ):
        assert why in error_detail(api.post("/v1/diarize", files={"file": ("x.wav", content)}), status)
    assert "no recording" in error_detail(api.post("/v1/diarize", data={"speakers": "2"}, files={"other": b"x"}), 422)
