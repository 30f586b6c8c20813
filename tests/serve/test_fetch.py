"""Tests of recordings by URL: only public hosts are contacted, at exactly the address that was checked."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ecapa_jax.errors import DownloadError
from helpers.hub_server import Fault, Server, serving
from helpers.serving import client
from helpers.sounds import encode, sound

from ecapa_jax.serve import fetch, service  # isort: skip - after the skip of helpers.serving

WAV = encode(sound())


@pytest.fixture
def hub() -> Iterator[Server]:
    with serving() as running:
        running.plain["/a.wav"] = WAV
        yield running


def fetch_bytes(url: str, **options):
    return fetch.fetch_public(url, **{"max_bytes": 10**6, "seconds": 5.0, "allowed": lambda _: True, **options})


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1",
        "2001:db8::1",
    ],
)  # fmt: skip
def test_private_addresses_are_not_public(address) -> None:
    assert not fetch.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address) -> None:
    assert fetch.is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "127.1", "0x7f000001", "2130706433", "0"]
)
def test_private_hosts_are_never_contacted(host, monkeypatch, hub) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(DownloadError, match=r"no public address|can't be downloaded"):
        fetch.fetch_public(f"http://{host}:{hub.url.rpartition(':')[2]}/a.wav", max_bytes=10**6, seconds=5.0)


def test_connection_uses_the_checked_address(monkeypatch, hub) -> None:
    """The name resolves to a public address first and to a private one afterwards, so it must be resolved only once."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    port = int(hub.url.rpartition(":")[2])
    real, connected = socket.create_connection, []

    def resolve(*_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address, *rest, **options):
        connected.append(address)
        return real(("127.0.0.1", port), *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    assert fetch.fetch_public(f"http://rebind.example:{port}/a.wav", max_bytes=10**6, seconds=5.0) == WAV
    assert connected == [("93.184.216.34", port)]
    assert hub.requests_to("/a.wav")[0]["Host"] == f"rebind.example:{port}"


def test_host_with_one_private_address_is_refused(monkeypatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(DownloadError, match="no public address"):
        fetch.fetch_public("http://both.example/a.wav", max_bytes=10**6, seconds=5.0)


def test_redirect_target_is_checked(hub) -> None:
    hub.plain["/b.wav"] = WAV
    hub.faults["/a.wav"] = [Fault(location="/b.wav")]
    assert fetch_bytes(f"{hub.url}/a.wav?key=s3cret") == WAV
    hub.faults["/a.wav"] = [Fault(location=hub.url.replace("127.0.0.1", "localhost") + "/b.wav")]
    checked = []
    with pytest.raises(DownloadError, match="no public") as caught:
        fetch_bytes(
            f"{hub.url}/a.wav?key=s3cret", allowed=lambda address: not checked.append(address) and len(checked) == 1
        )
    assert len(checked) == 2
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
def test_body_of_a_redirect_is_not_read(packed) -> None:
    """An endless or compressed body would fill the memory in spite of `max_bytes`."""
    sent = 0

    def redirect(listener: socket.socket) -> None:
        nonlocal sent
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            packing = "Content-Encoding: gzip\r\n" if packed else ""
            peer.sendall(f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2/\r\n{packing}\r\n".encode())
            while sent < 200_000_000:
                sent += peer.send(bytes(100_000))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=redirect, args=[listener])
        thread.start()
        checked = iter([True, False])
        with pytest.raises(DownloadError, match="no public address"):
            fetch_bytes(f"http://127.0.0.1:{listener.getsockname()[1]}/", allowed=lambda _: next(checked))
        thread.join()
    assert sent < 20_000_000


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Fault(location="file:///etc/passwd"), "only http"),
        (Fault(location="/a.wav"), "redirects more than"),
        (Fault(status=404), "answered 404"),
        (Fault(status=301), "to nowhere"),
        (Fault(cut=100), "closed after 100"),
    ],
)
def test_server_errors_are_reported(hub, fault, why) -> None:
    hub.faults["/a.wav"] = [fault] * 9
    with pytest.raises(DownloadError, match=why):
        fetch_bytes(f"{hub.url}/a.wav")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a.wav",
        "file:///etc/passwd",
        "example.org/a.wav",
        "http://",
        "http://a:b:c/",
        "http://[::1/",
        "gopher://x/",
        "http://a\r\nX: y/",
    ],
)
def test_invalid_urls_are_refused(url, monkeypatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(DownloadError):
        fetch.fetch_public(url, max_bytes=10, seconds=1.0)


def test_too_large_response_is_refused(hub) -> None:
    with pytest.raises(fetch.TooLargeError):
        fetch_bytes(f"{hub.url}/a.wav", max_bytes=1000)
    hub.faults["/a.wav"] = [Fault(headers={"Content-Length": None})]
    with pytest.raises(fetch.TooLargeError):
        fetch_bytes(f"{hub.url}/a.wav", max_bytes=1000)


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_slow_response_times_out(first) -> None:
    done = threading.Event()

    def respond_slowly(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            try:
                peer.sendall(first)
                while not done.wait(0.05):
                    peer.sendall(b"x")
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=respond_slowly, args=[listener])
        thread.start()
        start = time.monotonic()
        try:
            with pytest.raises(DownloadError, match="not there after"):
                fetch_bytes(f"http://127.0.0.1:{listener.getsockname()[1]}/", seconds=0.5)
            assert time.monotonic() - start < 3
        finally:
            done.set()
            thread.join()


def test_api_accepts_urls(hub, encoder, monkeypatch) -> None:
    with client(encoder, allow_urls=True) as api:
        hub.plain["/a.wav?key=s3cret"] = WAV
        url = f"{hub.url}/a.wav?key=s3cret"
        answer = api.post("/v1/verify", files={"a": ("a.wav", WAV)}, data={"b_url": url})
        assert answer.status_code == 422
        assert "no public address" in answer.json()["detail"]
        assert "s3cret" not in answer.text
        monkeypatch.setattr(service, "fetch_public", lambda url, **options: fetch_bytes(url, **options))
        answer = api.post("/v1/verify", files={"a": ("a.wav", WAV)}, data={"b_url": url})
        assert answer.status_code == 200, answer.text
        assert answer.json()["score"] == pytest.approx(1, abs=1e-5)
        both = api.post("/v1/verify", files={"a": ("a.wav", WAV), "b": ("b.wav", WAV)}, data={"b_url": url})
        assert "not both" in both.json()["detail"]
