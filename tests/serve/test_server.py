"""Tests of the server on a real port: slow and hostile clients, concurrency, batching, graceful shutdown."""

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
def strict_server(encoder, monkeypatch) -> Iterator[Running]:
    """A server with short timeouts and a limit of two requests."""
    monkeypatch.setattr(serve_run, "HEADER_SECONDS", 0.3)
    with running(encoder, body_seconds=0.6, max_requests=2, max_bytes=400_000) as server:
        yield server


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def request_head(length: int, *, extra: str = "") -> bytes:
    return (
        f"POST /v1/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {length}\r\n{extra}\r\n"
    ).encode()


def receive_all(sock: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while block := sock.recv(65536):
            answer += block
    return answer


def test_unfinished_request_head_times_out(strict_server) -> None:
    start = time.monotonic()
    with connect(strict_server) as sock:
        sock.sendall(b"POST /v1/verify HT")
        time.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"TP/1.1\r\nX: ")
        assert receive_all(sock) == b""
    assert 0.2 < time.monotonic() - start < 5


def test_unfinished_second_request_head_times_out(strict_server) -> None:
    with connect(strict_server) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += sock.recv(65536)
        assert b"200 OK" in answer
        sock.sendall(b"GET /healthz HT")
        assert receive_all(sock) == b""


def test_slow_request_body_gets_408(strict_server) -> None:
    with connect(strict_server) as sock:
        sock.sendall(request_head(1000))
        stop = time.monotonic() + 5
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < stop and strict_server.service is not None:
                sock.sendall(b"-")
                time.sleep(0.1)
                sock.settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    if answer := sock.recv(65536):
                        break
        sock.settimeout(5)
        answer += receive_all(sock)
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"send it again" in answer


def test_too_large_request_gets_413_before_its_end(strict_server) -> None:
    with connect(strict_server) as sock:
        sock.sendall(request_head(10**12))
        assert b" 413 " in receive_all(sock)
    with connect(strict_server) as sock:
        sock.sendall(request_head(600_000) + bytes(600_000))
        assert b" 413 " in receive_all(sock)


@pytest.mark.parametrize(
    "bad", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9\r\n\r\n", b"\r\n" * 500, b"X" * 200_000]
)
def test_invalid_http_gets_no_500(strict_server, bad) -> None:
    with connect(strict_server) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(bad)
        assert b" 500 " not in receive_all(sock)
    assert httpx2.get(f"{strict_server.url}/healthz").status_code == 200


def test_invalid_content_length_gets_400(strict_server) -> None:
    with connect(strict_server) as sock:
        sock.sendall(request_head(-5))
        assert b" 400 " in receive_all(sock)
    with connect(strict_server) as sock:
        sock.sendall(request_head(10, extra="Transfer-Encoding: chunked\r\n") + b"zz\r\n")
        assert b" 400 " in receive_all(sock)


def test_flac_with_wrong_length_is_refused(strict_server) -> None:
    flac = bytearray(encode(sound(1.0), "FLAC"))
    assert flac[:4] == b"fLaC"
    for frames, status, why in ((0xFFFFFFFFF, 413, "longer than"), (16000 * 59, 422, "truncated")):
        bits = int.from_bytes(flac[18:26], "big") & ~0xFFFFFFFFF | frames  # the number of frames is in the last 36 bits
        lying = bytes(flac[:18]) + bits.to_bytes(8, "big") + bytes(flac[26:])
        answer = httpx2.post(f"{strict_server.url}/v1/embed", files={"file": ("lie.flac", lying)})
        assert answer.status_code == status, answer.text
        assert why in answer.json()["detail"]


def test_flac_without_length_is_refused_at_the_limit(encoder) -> None:
    """The file has ten minutes of silence in less than 100 kB."""
    flac = bytearray(encode(np.zeros(16000 * 600, np.float32), "FLAC"))
    flac[21:26] = bytes([flac[21] & 0xF0, 0, 0, 0, 0])
    assert len(flac) < 100_000
    with running(encoder) as server:
        answer = httpx2.post(f"{server.url}/v1/embed", files={"file": ("lie.flac", bytes(flac))}, timeout=30)
    assert answer.status_code == 413, answer.text


def test_requests_above_the_limit_get_429(strict_server) -> None:
    with connect(strict_server) as one, connect(strict_server) as two:
        for sock in (one, two):
            sock.sendall(request_head(1000))
        time.sleep(0.2)
        answer = httpx2.post(f"{strict_server.url}/v1/verify", files=FORM)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert httpx2.get(f"{strict_server.url}/healthz").status_code == 200
        assert b" 408 " in receive_all(one)
        assert b" 408 " in receive_all(two)
    assert httpx2.post(f"{strict_server.url}/v1/verify", files=FORM, timeout=60).status_code == 200


def test_refused_client_receives_the_response_to_a_large_request(encoder) -> None:
    with running(encoder, max_requests=1) as server, connect(server) as sock:
        sock.sendall(request_head(1000))
        deadline = time.monotonic() + 10
        while httpx2.post(f"{server.url}/v1/verify", files=LARGE, timeout=60).status_code != 429:
            assert time.monotonic() < deadline
        for _ in range(20):
            assert httpx2.post(f"{server.url}/v1/verify", files=LARGE, timeout=60).status_code == 429


def test_disconnected_client_frees_its_slot(strict_server) -> None:
    for _ in range(4):
        with connect(strict_server) as sock:
            sock.sendall(request_head(1000) + b"--x")
    time.sleep(0.2)
    assert httpx2.post(f"{strict_server.url}/v1/verify", files=FORM, timeout=60).status_code == 200


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


def test_internal_error_hides_the_traceback_and_the_service_continues(encoder, monkeypatch) -> None:
    with running(encoder) as server:
        with monkeypatch.context() as broken:
            broken.setattr(type(encoder), "embed", lambda *_: 1 / 0)
            answer = httpx2.post(f"{server.url}/v1/embed", files={"file": ("a.wav", WAV)})
        assert answer.status_code == 500
        assert answer.json() == {"detail": "internal error; see the service's log"}
        assert httpx2.post(f"{server.url}/v1/embed", files={"file": ("a.wav", WAV)}, timeout=60).status_code == 200


def test_port_in_use_is_reported() -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(EcapaError, match="choose another"):
        listen("127.0.0.1", sock.getsockname()[1])


def test_serve_command_responds_and_stops_gracefully(tmp_path) -> None:
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
                time.sleep(0.5)  # the request is still running, because the first one compiles
                process.send_signal(signal.SIGTERM)
                answer = asked.result()
            assert (answer.status_code, answer.json()["same_speaker"]) == (200, True)
            rest = process.stderr.read()
            assert (process.wait(60), rest) == (0, "")
        finally:
            process.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["team.db"]
