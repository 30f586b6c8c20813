"""Tests of recordings by https URL: the certificate must be valid for the host and signed by a trusted authority."""

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
    """Serves a recording, and redirects to http."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/a.wav" else 302)
        self.send_header("Content-Length", str(len(WAV) if self.path == "/a.wav" else 0))
        self.send_header("Location", f"{self.path[1:]}://{HOST}:{self.server.server_port}/a.wav")
        self.end_headers()
        if self.path == "/a.wav":
            self.wfile.write(WAV)

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


class Server(http.server.ThreadingHTTPServer):
    """A server over TLS that ignores clients which close the connection during the handshake."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Prints nothing."""


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
    """Makes this machine trust the authority, and resolves every name to the loopback address."""
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(_: str, port: int, *__: object, **___: object) -> list[tuple]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def fetch_bytes(url: str, seconds: float = 5.0) -> bytes:
    return fetch.fetch_public(url, max_bytes=10**6, seconds=seconds, allowed=lambda _: True)


def test_recording_is_fetched_over_tls(trusted: None, port: int) -> None:
    assert fetch_bytes(f"https://{HOST}:{port}/a.wav") == WAV
    assert fetch_bytes(f"https://{HOST}:{port}/https") == WAV  # through a redirect


def test_certificate_of_another_host_is_refused(trusted: None, port: int) -> None:
    with pytest.raises(DownloadError, match=r"can't be downloaded .*Hostname mismatch"):
        fetch_bytes(f"https://other.example:{port}/a.wav")


def test_untrusted_authority_is_refused(port: int) -> None:
    with pytest.raises(DownloadError, match=r"can't be downloaded .*self-signed|unable to get local issuer"):
        fetch_bytes(f"https://{HOST}:{port}/a.wav")


def test_redirect_from_https_to_http_is_refused(trusted: None, port: int) -> None:
    with pytest.raises(DownloadError, match="not encrypted"):
        fetch_bytes(f"https://{HOST}:{port}/http")


def test_unanswered_handshake_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start = time.monotonic()
        with pytest.raises(DownloadError, match=r"is not there after 0\.5 s"):
            fetch_bytes(f"https://{HOST}:{mute.getsockname()[1]}/a.wav", seconds=0.5)
        assert time.monotonic() - start < 5
