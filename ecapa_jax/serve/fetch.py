"""Fetches recordings that strangers name by address: from public hosts only.

The transport resolves each name once, checks every address it has, and connects to one of these, so that a name that
resolves to something else a moment later gains nothing. The name stays in the Host header and in the TLS handshake.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2

from ecapa_jax.errors import DownloadError, without_secrets
from ecapa_jax.hub.http import TooLargeError, fetch

__all__ = ["TooLargeError", "fetch_public", "is_public"]

Check = Callable[[str], bool]

_REMEDY = "send a shorter recording"


def is_public(address: str) -> bool:
    """Returns whether an IP address is of the public internet, also inside IPv6 forms that carry an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        carried = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96") or ip in ipaddress.ip_network("::/96"):
            carried.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(inner is not None and not is_public(str(inner)) for inner in carried):
            return False
    return ip.is_global and not ip.is_multicast


def fetch_public(url: str, *, max_bytes: int, seconds: float, allowed: Check = is_public) -> bytes:
    """Downloads a recording from a public host.

    Args:
      url: http or https.
      max_bytes: a longer answer is refused, by its declared length or while it arrives.
      seconds: for everything, redirects included.
      allowed: which IP addresses may be connected to.

    Raises:
      TooLargeError: the answer is too long.
      DownloadError: another scheme, an address that is not allowed, unreachable, an HTTP error, too slow, cut short.
    """
    transport = _PublicTransport(time.monotonic() + seconds, allowed)
    try:
        body = fetch(url, max_bytes=max_bytes, timeout=seconds, redirects=4, transport=transport, remedy=_REMEDY)
        if transport.seconds_left() <= 0:
            raise DownloadError("a connection that was cut looks like the end of a body without a length")
        return body
    except TooLargeError:
        raise
    except DownloadError as error:
        if transport.seconds_left() > 0:
            raise
        late = f"{without_secrets(url)}: is not there after {seconds:g} s; upload the file instead"
        raise DownloadError(late) from error


class _PublicTransport(httpx2.BaseTransport):
    """Wraps httpx's transport: connects to addresses that were checked, and cuts connections at the deadline.

    httpx's own time limits hold for each wait; a server that sends a byte now and then never reaches them.
    """

    def __init__(self, deadline: float, allowed: Check):
        self._deadline = deadline
        self._allowed = allowed
        # No connection is kept: the next name may have the same address, and must show its own certificate.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._inner = httpx2.HTTPTransport(verify=ssl.create_default_context(), trust_env=False, limits=limits)
        self._watches: list[tuple[threading.Timer, socket.socket]] = []

    def seconds_left(self) -> float:
        """Returns the seconds until the deadline."""
        return self._deadline - time.monotonic()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request to an address of its host, if all addresses of the host are allowed."""
        host = request.url.raw_host.decode("ascii").strip("[]")
        left = self.seconds_left()
        if left <= 0:
            raise httpx2.ConnectTimeout("the deadline has passed")
        checked = httpx2.Request(
            request.method,
            request.url.copy_with(host=self._resolve(host, request.url)),
            headers=request.headers,  # with the Host
            extensions={
                **request.extensions,
                "sni_hostname": host,
                "timeout": dict.fromkeys(("connect", "read", "write", "pool"), left),
                "trace": self._watch,
            },
        )
        return self._inner.handle_request(checked)

    def close(self) -> None:
        """Closes all connections."""
        for timer, sock in self._watches:
            timer.cancel()
            sock.close()
        self._inner.close()

    def _resolve(self, host: str, url: httpx2.URL) -> str:
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpx2.ConnectError(str(error)) from error
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(self._allowed(address) for address in addresses):
            raise DownloadError(f"{without_secrets(str(url))}: has no public address; upload the file instead")
        return addresses[0]

    def _watch(self, event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            sock = info["return_value"].get_extra_info("socket").dup()  # the original is replaced by the one of TLS
            timer = threading.Timer(max(0.0, self.seconds_left()), _shut_down, [sock])
            self._watches.append((timer, sock))
            timer.start()


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
