"""Tests of the HTTP API: results equal those of the library, errors are one line, and limits are enforced."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.features.fbank import fbank
from ecapa_jax.identify.store import SpeakerStore
from helpers import parity
from helpers.serving import TestClient, client
from helpers.sounds import COMPLETE, encode, sound

A, B = sound(1.3), sound(0.9)[::-1].copy()
FILES = {"a": ("a.wav", encode(A)), "b": ("b.flac", encode(B, "FLAC"))}


@pytest.fixture(scope="module")
def api(encoder: SpeakerEncoder) -> Iterator[TestClient]:
    with client(encoder) as talking:
        yield talking


def error_detail(response, status: int) -> str:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["detail"]
    detail = response.json()["detail"]
    assert detail
    assert "\n" not in detail
    assert "Traceback" not in detail
    assert str(Path.home()) not in detail
    return detail


def test_verify_equals_the_library(api, encoder) -> None:
    answer = api.post("/v1/verify", files=FILES).json()
    expected = encoder.verify(FILES["a"][1], FILES["b"][1])
    assert abs(answer["score"] - expected.score) <= 1e-5
    assert answer["same_speaker"] == (answer["score"] >= 0.25)
    assert (answer["threshold"], answer["score_type"], answer["model"]) == (0.25, "cosine", "small")
    assert answer["seconds"] == [1.3, 0.9]
    assert 0 < answer["milliseconds"] < 60_000


@pytest.mark.parametrize(("threshold", "same"), [(-1, True), (1, False)])
def test_threshold_of_the_request_decides(api, threshold, same) -> None:
    answer = api.post("/v1/verify", files=FILES, data={"threshold": threshold}).json()
    assert (answer["threshold"], answer["same_speaker"]) == (threshold, same)


@pytest.mark.parametrize(("threshold", "why"), [("1.5", "lies in"), ("nan", "lies in"), ("x", "valid number")])
def test_invalid_threshold_is_refused(api, threshold, why) -> None:
    assert why in error_detail(api.post("/v1/verify", files=FILES, data={"threshold": threshold}), 422)


@pytest.mark.parametrize("kind", ["wav", "wav24", "aiff", "flac", "ogg", "mp3_vbr"])
def test_embed_accepts_every_format_of_the_library(api, encoder, kind) -> None:
    files = [("file", (f"x.{kind}", COMPLETE[kind])), ("file", ("b.flac", FILES["b"][1]))]
    answer = api.post("/v1/embed", files=files).json()
    expected = encoder.embed([COMPLETE[kind], FILES["b"][1]])
    assert parity.same_embeddings(answer["embeddings"], expected)
    assert answer["fingerprint"] == encoder.fingerprint


def test_features_equal_those_of_the_model(api, encoder) -> None:
    answer = api.post("/v1/features", files={"file": FILES["a"]}).json()
    features = jax.jit(fbank, static_argnums=0)
    expected = np.asarray(features(encoder.config.fbank, encoder.read(FILES["a"][1])[None], np.array([len(A)]))[0])[0]
    image = np.frombuffer(base64.b64decode(answer["image"]), np.uint8).reshape(answer["mels"], answer["columns"])
    assert (answer["frames"], answer["mels"]) == expected.shape
    step = (answer["highest"] - answer["lowest"]) / 255
    drawn = answer["lowest"] + step * image.T
    np.testing.assert_allclose(drawn, expected.clip(answer["lowest"], answer["highest"]), atol=0.51 * step)
    assert np.percentile(expected, 1) == pytest.approx(answer["lowest"], abs=1e-3)
    peaks = np.array(answer["peaks"])
    assert peaks.min() == pytest.approx(A.min(), abs=1e-3)
    assert peaks.max() == pytest.approx(A.max(), abs=1e-3)


def test_features_of_a_long_recording_are_averaged(api) -> None:
    answer = api.post("/v1/features", files={"file": ("long.wav", encode(sound(20)))}).json()
    assert (answer["frames"], answer["columns"]) == (1998, 800)
    assert len(base64.b64decode(answer["image"])) == 800 * answer["mels"]


def test_model_endpoint_describes_the_model(api, encoder) -> None:
    answer = api.get("/v1/model").json()
    assert (answer["name"], answer["threshold"], answer["store"]) == ("small", 0.25, False)
    assert answer["operating_points"][0]["far"] == 0.01
    assert answer["minimum_seconds"] == encoder.minimum_samples / 16000
    for sample in answer["samples"]:
        got = api.get(f"/static/samples/{sample['name']}")
        assert got.status_code == 200
        assert encoder.read(got.content).size > 16000


def test_samples_equal_those_of_the_demo() -> None:
    root = Path(__file__).parents[2]
    packaged = {path.name: path.read_bytes() for path in (root / "ecapa_jax/serve/static/samples").glob("*.flac")}
    assert packaged == {path.name: path.read_bytes() for path in (root / "examples/audio").glob("*.flac")}


@pytest.mark.parametrize(
    ("name", "content", "status", "why"),
    [
        ("notes.txt", b"dear diary\n" * 100, 422, "notes.txt: is not audio"),
        ("empty.wav", b"", 422, "is empty"),
        ("short.wav", encode(sound(0.01)), 422, "too short: 10 ms"),
        ("silent.wav", encode(np.zeros(16000, np.float32)), 422, "silent"),
        ("nan.wav", encode(np.full(16000, np.nan, np.float32), subtype="FLOAT"), 422, "not finite"),
        ("cut.wav", encode(sound())[:-999], 422, "truncated"),
        ("cut.mp3", COMPLETE["mp3"][:300], 422, "cut.mp3"),
        ("long.wav", encode(sound(61)), 413, "longer than 60 seconds"),
        ("../../etc/pass\nwd\x1b[1m.wav", b"x", 422, "pass"),
    ],
)
def test_invalid_recording_is_refused(api, name, content, status, why) -> None:
    for path, field in (("/v1/verify", "b"), ("/v1/embed", "file"), ("/v1/features", "file")):
        files = {"a": FILES["a"], field: (name, content)}
        detail = error_detail(api.post(path, files=files), status)
        assert why in detail
        assert "etc" not in detail
        assert "\x1b" not in detail


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        ({"files": {"a": FILES["a"]}}, 422, "b: no recording"),
        ({"json": {"a": "x"}}, 415, "multipart/form-data"),
        ({"data": {"a": "x"}}, 415, "multipart/form-data"),
        ({"content": b"RIFF", "headers": {"content-type": "audio/wav"}}, 415, "multipart/form-data"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
        ({"content": b"junk", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "form"),
        ({"content": b"--x\r\n\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "form"),
        ({"content": b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nRIFF',
          "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "cut short"),
        ({"content": b"--x--\r\n",
          "headers": {"content-type": "multipart/form-data; charset=no; boundary=x"}}, 422, "a:"),
        ({"files": FILES, "data": {"a_url": "https://example.org/a.wav"}}, 403, "--allow-urls"),
        ({"files": [("a", FILES["a"])] * 40}, 400, "many files"),
        ({"files": {"a": ("a.wav", FILES["a"][1])}, "data": {f"f{i}": "x" for i in range(100)}}, 400, "many fields"),
    ],
)  # fmt: skip
def test_invalid_form_is_refused(api, options, status, why) -> None:
    assert why in error_detail(api.post("/v1/verify", **options), status)


def test_unknown_paths_and_methods_are_refused(api) -> None:
    error_detail(api.get("/v1/verify"), 405)
    error_detail(api.get("/nothing"), 404)
    error_detail(api.get("/static/../app.py"), 404)
    error_detail(api.get("/static/%2e%2e/app.py"), 404)
    error_detail(api.get("/static/samples"), 404)


def test_too_large_requests_are_refused(encoder) -> None:
    with client(encoder, max_bytes=50_000) as small:
        big = encode(sound(4))
        assert "0.05 MB" in error_detail(small.post("/v1/embed", files={"file": ("a.wav", big)}), 413)
        chunks = (b"x" * 9_000 for _ in range(9))
        error_detail(
            small.post("/v1/embed", content=chunks, headers={"content-type": "multipart/form-data; boundary=x"}), 413
        )
        assert small.post("/v1/embed", files={"file": ("a.wav", encode(sound()))}).status_code == 200


def test_requests_need_the_token(encoder) -> None:
    with client(encoder, token="s3cret") as locked:
        assert "token" in error_detail(locked.get("/v1/model"), 401)
        error_detail(locked.delete("/v1/speakers/Ann"), 401)
        error_detail(locked.post("/v1/diarize", files={"file": FILES["a"]}), 401)
        for wrong in ("Bearer s3cre", "Bearer", "Basic s3cret", "s3cret", "Bearer s3crét"):
            answer = locked.get("/v1/model", headers={"authorization": wrong.encode()})
            error_detail(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert locked.get("/v1/model", headers={"authorization": "bearer s3cret"}).status_code == 200
        assert locked.get("/").status_code == 200
        assert locked.get("/healthz").status_code == 200


def test_requests_from_other_sites_and_hosts_are_refused(api) -> None:
    assert "other sites" in error_detail(
        api.post("/v1/verify", files=FILES, headers={"origin": "http://evil.example"}), 403
    )
    error_detail(api.post("/v1/verify", files=FILES, headers={"origin": "null"}), 403)
    error_detail(api.get("/v1/model", headers={"host": "evil.example"}), 403)
    assert api.get("/v1/model", headers={"host": "localhost:9", "origin": "http://localhost:9"}).status_code == 200


def test_security_headers_of_page_and_api(api) -> None:
    page = api.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert api.get("/v1/model").headers["cache-control"] == "no-store"


def test_documentation_loads_nothing_from_other_sites(api) -> None:
    docs = api.get("/docs").text
    assert "http://" not in docs
    assert "https://" not in docs
    for asset in ("/docs/static/swagger-ui-bundle.js", "/docs/static/swagger-ui.css"):
        assert asset in docs
        assert api.get(asset).status_code == 200
    assert set(api.get("/openapi.json").json()["paths"]) == {
        "/healthz", "/v1/model", "/v1/verify", "/v1/embed", "/v1/features", "/v1/enroll", "/v1/identify",
        "/v1/speakers", "/v1/speakers/{name}", "/v1/diarize",
    }  # fmt: skip


def test_speakers_are_enrolled_identified_and_removed(encoder, tmp_path) -> None:
    path = tmp_path / "team.db"
    wav = ("a.wav", encode(A))
    with client(encoder, store=SpeakerStore.open(path, encoder)) as api:
        assert api.post("/v1/identify", files={"file": wav}).json() == {
            "speaker": None, "threshold": 0.25, "candidates": []}  # fmt: skip
        enrolled = api.post("/v1/enroll", data={"name": " Ann "}, files=[("file", wav), ("file", FILES["b"])])
        assert enrolled.json() == {"name": "Ann", "added": 2, "known": 0}
        assert api.post("/v1/enroll", data={"name": "Ann"}, files={"file": wav}).json()["known"] == 1
        found = api.post("/v1/identify", files={"file": wav}, data={"threshold": "-1"}).json()
        assert (found["speaker"], len(found["candidates"])) == ("Ann", 1)
        assert api.get("/v1/speakers").json() == [{"name": "Ann", "utterances": 2}]
        assert "empty" in error_detail(api.post("/v1/enroll", data={"name": " "}, files={"file": wav}), 422)
        assert "name:" in error_detail(api.post("/v1/enroll", files={"file": wav}), 422)
        error_detail(api.post("/v1/identify", files={"file": wav}, data={"top": "0"}), 422)
        error_detail(api.post("/v1/enroll", data={"name": "Bob"}, files=[("file", wav), ("file", ("x", b"x"))]), 422)
        assert len(api.get("/v1/speakers").json()) == 1
        api.post("/v1/enroll", data={"name": "A/C & Sons?"}, files={"file": wav})
        removed = api.delete("/v1/speakers/A%2FC%20%26%20Sons%3F")
        assert removed.json() == {"name": "A/C & Sons?", "utterances": 1}
        for name in ("A%2FC%20%26%20Sons%3F", "%20", "..%2Fteam.db"):
            assert "team.db: " not in error_detail(api.delete(f"/v1/speakers/{name}"), 404)
        assert api.get("/v1/speakers").json() == [{"name": "Ann", "utterances": 2}]
    with SpeakerStore.open(path, encoder) as store:
        expected = store.identify(encode(A), threshold=-1.0)
        assert found["candidates"][0]["score"] == pytest.approx(expected.candidates[0].score, abs=1e-5)


def test_store_error_does_not_reveal_its_path(encoder, tmp_path) -> None:
    store = SpeakerStore.open(tmp_path / "team.db", encoder)
    with client(encoder, store=store) as api:
        store.database._connection.execute("DROP TABLE utterance")
        assert "team" not in error_detail(api.get("/v1/speakers"), 503)


def test_speaker_endpoints_without_a_store_are_refused(api) -> None:
    for answer in (
        api.post("/v1/enroll", data={"name": "Ann"}, files={"file": FILES["a"]}),
        api.post("/v1/identify", files={"file": FILES["a"]}),
        api.get("/v1/speakers"),
        api.delete("/v1/speakers/Ann"),
    ):
        assert "--store" in error_detail(answer, 404)


def test_requests_write_nothing_to_disk(api, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # a temporary file would fail here
    big = encode(sound(59, channels=2), subtype="PCM_24")
    assert len(big) > 4_000_000
    assert api.post("/v1/features", files={"file": ("big.wav", big)}).status_code == 200
    assert not list(tmp_path.iterdir())
