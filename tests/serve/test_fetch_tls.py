"""Recordings by https address: the certificate must be the host's, from an authority that this machine trusts."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecapa_jax.errors import DownloadError
from helpers.sounds import encode, sound

trustme = pytest.importorskip("trustme", reason="needs the test group")
fetch = pytest.importorskip("ecapa_jax.serve.fetch", reason="needs the extra serve")

WAV = encode(sound())
HOST = "recordings.example"


class Handler(http.server.BaseHTTPRequestHandler):
    """A recording, and a way out of the encryption."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/a.wav" else 302)
        self.send_header("Content-Length", str(len(WAV) if self.path == "/a.wav" else 0))
        self.send_header("Location", f"{self.path[1:]}://{HOST}:{self.server.server_port}/a.wav")
        self.end_headers()
        if self.path == "/a.wav":
            self.wfile.write(WAV)

    def log_message(self, *_: object) -> None:
        """Silent."""


class Server(http.server.ThreadingHTTPServer):
    """Over TLS; a client that leaves in the handshake is what some tests are about."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def port(authority: trustme.CA) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine trusts the authority, and every name is the loopback's."""
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(_: str, port: int, *__: object, **___: object) -> list[tuple]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def get(url: str, seconds: float = 5.0) -> bytes:
    return fetch.fetch_public(url, max_bytes=10**6, seconds=seconds, allowed=lambda _: True)


def test_a_recording(trusted: None, port: int) -> None:
    assert get(f"https://{HOST}:{port}/a.wav") == WAV
    assert get(f"https://{HOST}:{port}/https") == WAV  # by a redirect


def test_the_certificate_of_another_host(trusted: None, port: int) -> None:
    with pytest.raises(DownloadError, match=r"can't be downloaded .*Hostname mismatch"):
        get(f"https://other.example:{port}/a.wav")


def test_an_authority_that_nobody_trusts(port: int) -> None:
    with pytest.raises(DownloadError, match=r"can't be downloaded .*self-signed|unable to get local issuer"):
        get(f"https://{HOST}:{port}/a.wav")


def test_no_way_out_of_the_encryption(trusted: None, port: int) -> None:
    with pytest.raises(DownloadError, match="not encrypted"):
        get(f"https://{HOST}:{port}/http")


def test_a_handshake_that_is_never_answered_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start = time.monotonic()
        with pytest.raises(DownloadError, match=r"is not there after 0\.5 s"):
            get(f"https://{HOST}:{mute.getsockname()[1]}/a.wav", seconds=0.5)
        assert time.monotonic() - start < 5
