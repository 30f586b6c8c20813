"""Tests of recordings that are loaded by URL from a server in a thread."""

import contextlib
import http.server
import threading
import time

import numpy as np
import pytest

from ecapa_jax.errors import DownloadError
from ecapa_jax.hub import http as hub
from helpers.sounds import COMPLETE, assert_refused, load


class Handler(http.server.BaseHTTPRequestHandler):
    """Responds according to the path; see `test_urls_are_downloaded`."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            self.answer(302, b"", Location=path.removeprefix("/to/"))
        elif path == "/loop":
            self.answer(302, b"", Location="/loop")
        elif path in ("/a.wav", "/with%20blank.wav"):
            self.answer(200, COMPLETE["wav"])
        elif path == "/short.wav":
            self.answer(200, COMPLETE["wav"], **{"Content-Length": str(len(COMPLETE["wav"]) + 10)})
        elif path == "/unmeasured":
            self.answer(200, bytes(300_000), **{"Content-Length": None})
        elif path == "/slow":
            time.sleep(0.6)
            self.answer(200, b"")
        elif path == "/nonsense":
            self.wfile.write(b"nonsense\r\n\r\n")
        else:
            self.answer(404, b"no such thing")

    def answer(self, status, body, **headers):
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def test_urls_are_downloaded(server):
    expected = load(COMPLETE["wav"])
    for path in ("/a.wav", "/a.wav?key=1", "/to//a.wav", f"/to/{server}/a.wav", "/with blank.wav", "/with%20blank.wav"):
        np.testing.assert_array_equal(load(server + path), expected)
    np.testing.assert_array_equal(load((server + "/a.wav").replace("http", "HTTP", 1)), expected)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("/no.wav", "answered 404 Not Found; check the address"),
        ("/loop", "infinite loop"),
        ("/to/file:///etc/passwd", "redirects to file:///etc/passwd: only http and https"),
        ("/to/ftp://127.0.0.1/a.wav", "only http and https"),
        ("/to/data:,x", "only http and https"),
        ("/to//no.wav", "404"),
        ("/short.wav", "the connection closed after"),
        ("/nonsense", "can't be downloaded"),
        ("/unmeasured", "is not audio"),
    ],
)
def test_invalid_responses_are_refused(server, path, match):
    message = assert_refused(f"{server}{path}?key=secret", match)
    assert "secret" not in message
    assert message.startswith(server)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("file:///etc/passwd", "only http and https addresses are downloaded, not 'file'"),
        ("ftp://host/a.wav", "not 'ftp'"),
        ("http://127.0.0.1:1/a.wav", "can't be reached"),
        ("http://host:port/a.wav", "can't be downloaded"),
        ("http:///a.wav", "can't be (reached|downloaded)"),
        ("http://[::1/a.wav", "can't be (reached|downloaded)"),
        ("http://a\nb/c.wav", "can't be (reached|downloaded)"),
    ],
)
def test_invalid_urls_are_refused(url, match):
    assert_refused(url, match)


def test_download_is_limited_in_size_and_time(server):
    assert hub.fetch(f"{server}/a.wav", max_bytes=len(COMPLETE["wav"])) == COMPLETE["wav"]
    for path in ("/a.wav", "/unmeasured"):
        with pytest.raises(DownloadError, match=r"is larger than 0\.03 MB"):
            hub.fetch(server + path, max_bytes=30_000)
    with pytest.raises(DownloadError, match=r"timed out|no data for 0.2 s"):
        hub.fetch(f"{server}/slow", timeout=0.2)
