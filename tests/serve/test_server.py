"""The server on a real port: slow and hostile clients, concurrency, batching, a graceful stop."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest

from ecapa_jax.errors import EcapaError
from ecapa_jax.scoring.cosine import cosine
from ecapa_jax.serve import run as serve_run
from helpers.cli import PROGRAM
from helpers.serving import Running, listen, running
from helpers.sounds import encode, sound

WAV = encode(sound(1.0))
LARGE = {name: (name, encode(sound(5.0))) for name in "ab"}
FORM = {"a": ("a.wav", WAV), "b": ("b.wav", WAV)}


@pytest.fixture
def quick(encoder, monkeypatch) -> Iterator[Running]:
    """Impatient, and with room for two requests."""
    monkeypatch.setattr(serve_run, "HEADER_SECONDS", 0.3)
    with running(encoder, body_seconds=0.6, max_requests=2, max_bytes=400_000) as server:
        yield server


def dial(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def head(length: int, *, extra: str = "") -> bytes:
    return (
        f"POST /v1/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {length}\r\n{extra}\r\n"
    ).encode()


def received(sock: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while block := sock.recv(65536):
            answer += block
    return answer


def test_a_head_that_never_ends_is_hung_up_on(quick) -> None:
    start = time.monotonic()
    with dial(quick) as sock:
        sock.sendall(b"POST /v1/verify HT")
        time.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"TP/1.1\r\nX: ")
        assert received(sock) == b""
    assert 0.2 < time.monotonic() - start < 5


def test_a_second_head_that_never_ends_is_hung_up_on(quick) -> None:
    with dial(quick) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += sock.recv(65536)
        assert b"200 OK" in answer
        sock.sendall(b"GET /healthz HT")
        assert received(sock) == b""


def test_a_body_that_drips_gets_408(quick) -> None:
    with dial(quick) as sock:
        sock.sendall(head(1000))
        stop = time.monotonic() + 5
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < stop and quick.service is not None:
                sock.sendall(b"-")
                time.sleep(0.1)
                sock.settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    if answer := sock.recv(65536):
                        break
        sock.settimeout(5)
        answer += received(sock)
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"send it again" in answer


def test_oversize_is_told_before_the_end(quick) -> None:
    with dial(quick) as sock:
        sock.sendall(head(10**12))
        assert b" 413 " in received(sock)
    with dial(quick) as sock:
        sock.sendall(head(600_000) + bytes(600_000))
        assert b" 413 " in received(sock)


@pytest.mark.parametrize(
    "bad", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9\r\n\r\n", b"\r\n" * 500, b"X" * 200_000]
)
def test_what_is_no_http_gets_no_500(quick, bad) -> None:
    with dial(quick) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(bad)
        assert b" 500 " not in received(sock)
    assert httpx2.get(f"{quick.url}/healthz").status_code == 200


def test_lies_about_the_length(quick) -> None:
    with dial(quick) as sock:
        sock.sendall(head(-5))
        assert b" 400 " in received(sock)
    with dial(quick) as sock:
        sock.sendall(head(10, extra="Transfer-Encoding: chunked\r\n") + b"zz\r\n")
        assert b" 400 " in received(sock)


def test_a_flac_that_lies_about_its_length(quick) -> None:
    flac = bytearray(encode(sound(1.0), "FLAC"))
    assert flac[:4] == b"fLaC"
    for frames, status, why in ((0xFFFFFFFFF, 413, "longer than"), (16000 * 59, 422, "truncated")):
        bits = int.from_bytes(flac[18:26], "big") & ~0xFFFFFFFFF | frames  # the last 36 of these bits
        lying = bytes(flac[:18]) + bits.to_bytes(8, "big") + bytes(flac[26:])
        answer = httpx2.post(f"{quick.url}/v1/embed", files={"file": ("lie.flac", lying)})
        assert answer.status_code == status, answer.text
        assert why in answer.json()["detail"]


def test_a_flac_without_a_length_stops_at_the_limit(encoder) -> None:
    """Ten minutes of silence in some kilobytes."""
    flac = bytearray(encode(np.zeros(16000 * 600, np.float32), "FLAC"))
    flac[21:26] = bytes([flac[21] & 0xF0, 0, 0, 0, 0])
    assert len(flac) < 100_000
    with running(encoder) as server:
        answer = httpx2.post(f"{server.url}/v1/embed", files={"file": ("lie.flac", bytes(flac))}, timeout=30)
    assert answer.status_code == 413, answer.text


def test_more_than_allowed_at_once_get_429(quick) -> None:
    with dial(quick) as one, dial(quick) as two:
        for sock in (one, two):
            sock.sendall(head(1000))
        time.sleep(0.2)
        answer = httpx2.post(f"{quick.url}/v1/verify", files=FORM)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert httpx2.get(f"{quick.url}/healthz").status_code == 200
        assert b" 408 " in received(one)
        assert b" 408 " in received(two)
    assert httpx2.post(f"{quick.url}/v1/verify", files=FORM, timeout=60).status_code == 200


def test_who_is_refused_hears_it_however_much_he_sends(encoder) -> None:
    with running(encoder, max_requests=1) as server, dial(server) as sock:
        sock.sendall(head(1000))
        deadline = time.monotonic() + 10
        while httpx2.post(f"{server.url}/v1/verify", files=LARGE, timeout=60).status_code != 429:
            assert time.monotonic() < deadline
        for _ in range(20):
            assert httpx2.post(f"{server.url}/v1/verify", files=LARGE, timeout=60).status_code == 429


def test_a_client_that_leaves_frees_its_place(quick) -> None:
    for _ in range(4):
        with dial(quick) as sock:
            sock.sendall(head(1000) + b"--x")
    time.sleep(0.2)
    assert httpx2.post(f"{quick.url}/v1/verify", files=FORM, timeout=60).status_code == 200


def test_concurrent_requests_share_batches_and_are_exact(encoder) -> None:
    sounds = [encode(sound(0.5 + 0.05 * n)) for n in range(10)]
    expected = encoder.embed(sounds)
    encoder.warm_up(1.0)
    with running(encoder) as server, concurrent.futures.ThreadPoolExecutor(10) as pool:
        hold = threading.Event()
        embed = encoder.embed
        server.service.batcher._encoder = type(
            "Held", (), {"buckets": encoder.buckets, "embed": lambda _, w: hold.wait() and embed(w)}
        )()
        asked = [
            pool.submit(httpx2.post, f"{server.url}/v1/embed", files={"file": ("a", one)}, timeout=60) for one in sounds
        ]
        deadline = time.monotonic() + 30
        while len(server.service.batcher._jobs) < 9:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        hold.set()
        rows = [answer.result().json()["embeddings"][0] for answer in asked]
        batcher = server.service.batcher
        assert batcher.utterances == 10
        assert batcher.batches < 10
    np.testing.assert_allclose(rows, expected, atol=1e-4 * np.abs(expected).max())
    assert np.asarray(cosine(np.array(rows, np.float32), expected)) == pytest.approx(1, abs=1e-6)


def test_a_fault_is_told_without_its_trace_and_the_service_goes_on(encoder, monkeypatch) -> None:
    with running(encoder) as server:
        with monkeypatch.context() as broken:
            broken.setattr(type(encoder), "embed", lambda *_: 1 / 0)
            answer = httpx2.post(f"{server.url}/v1/embed", files={"file": ("a.wav", WAV)})
        assert answer.status_code == 500
        assert answer.json() == {"detail": "internal error; see the service's log"}
        assert httpx2.post(f"{server.url}/v1/embed", files={"file": ("a.wav", WAV)}, timeout=60).status_code == 200


def test_a_port_in_use() -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(EcapaError, match="choose another"):
        listen("127.0.0.1", sock.getsockname()[1])


def test_the_command_answers_and_stops_gracefully(tmp_path) -> None:
    command = [str(PROGRAM), "serve", "--port", "0", "--store", "team.db"]
    environment = {**os.environ, "ECAPA_JAX_TOKEN": "s3cret", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        try:
            line = process.stderr.readline()
            url = line.split()[0].rstrip("/")
            assert url.startswith("http://127.0.0.1:"), line
            assert json.load(urllib.request.urlopen(f"{url}/healthz", timeout=60))["status"] == "ok"
            headers = {"authorization": "Bearer s3cret"}
            with concurrent.futures.ThreadPoolExecutor() as pool:
                asked = pool.submit(httpx2.post, f"{url}/v1/verify", files=FORM, headers=headers, timeout=120)
                time.sleep(0.5)  # in work: the first request compiles
                process.send_signal(signal.SIGTERM)
                answer = asked.result()
            assert (answer.status_code, answer.json()["same_speaker"]) == (200, True)
            rest = process.stderr.read()
            assert (process.wait(60), rest) == (0, "")
        finally:
            process.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["team.db"]
