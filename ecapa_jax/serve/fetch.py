"""Recordings by address, for strangers: public hosts only, and the address that was checked is the one connected to.

The standard openers resolve a name again when they connect, and go through proxies; here each name is resolved once,
every address it has is checked, and the socket is opened to one of these.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import string
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

from ecapa_jax.errors import DownloadError, one_line, without_secrets

Check = Callable[[str], bool]

_BLOCK = 1 << 16
_MOVED = {301, 302, 303, 307, 308}
_REDIRECTS = 4
_PORTS = {"http": 80, "https": 443}


class TooLargeError(DownloadError):
    """What an address names is larger than allowed."""


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, also inside IPv6 forms that carry an IPv4 address."""
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
    name, end = without_secrets(url), time.monotonic() + seconds
    try:
        for _ in range(_REDIRECTS + 1):
            with _answer(url, name, end, allowed) as response:
                if response.status not in _MOVED:
                    return _body(response, name, max_bytes, end)
                url = _next(url, response.headers.get("Location", ""), name)
    except DownloadError:
        raise
    except TimeoutError as error:
        raise DownloadError(f"{name}: is not there after {seconds:g} s; upload the file instead") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(f"{name}: can't be downloaded ({one_line(error)}); check the address") from error
    raise DownloadError(f"{name}: redirects more than {_REDIRECTS} times; give the address of the file itself")


@contextlib.contextmanager
def _answer(url: str, name: str, end: float, allowed: Check) -> Iterator[http.client.HTTPResponse]:
    parts = urllib.parse.urlsplit(urllib.parse.quote(url.strip(), safe=string.punctuation))
    if parts.scheme not in _PORTS or not parts.hostname:
        raise DownloadError(f"{name}: only http and https addresses are fetched; give one, or upload the file")
    port = parts.port or _PORTS[parts.scheme]
    connection = http.client.HTTPConnection(parts.hostname, port)
    connection.sock = sock = _connect(parts.hostname, port, parts.scheme, name, end, allowed)
    # Each wait has a time-out of its own; a server that sends a byte now and then is cut off by this.
    watch = threading.Timer(_left(end), _cut, [sock])
    watch.start()
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        host = parts.netloc.rpartition("@")[2]
        connection.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
        for header, value in (("Host", host), ("User-Agent", "ecapa-jax"), ("Accept-Encoding", "identity")):
            connection.putheader(header, value)
        connection.endheaders()
        yield connection.getresponse()
    except OSError as error:
        _left(end)
        raise error
    finally:
        watch.cancel()
        connection.close()


def _connect(host: str, port: int, scheme: str, name: str, end: float, allowed: Check) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(allowed(address) for address in addresses):
        raise DownloadError(f"{name}: is no public address; upload the file instead")
    plain = socket.create_connection((addresses[0], port), timeout=_left(end))
    if scheme == "http":
        return plain
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _next(url: str, location: str, name: str) -> str:
    if not location:
        raise DownloadError(f"{name}: redirects to nowhere; check the address")
    target = urllib.parse.urljoin(url, location)
    if url.lower().startswith("https:") and not target.lower().startswith("https:"):
        raise DownloadError(f"{name}: redirects to an address that is not encrypted; give that one, if you trust it")
    return target


def _body(response: http.client.HTTPResponse, name: str, max_bytes: int, end: float) -> bytes:
    if response.status != http.client.OK:
        raise DownloadError(f"{name}: the server answered {response.status}; check the address")
    declared = response.length
    body = bytearray()
    while len(body) <= max_bytes and (declared is None or declared <= max_bytes):
        block = response.read1(_BLOCK)
        _left(end)  # else a connection that was cut off here would look like the end
        if not block:
            if declared is not None and len(body) < declared:
                raise DownloadError(f"{name}: the connection closed after {len(body)} of {declared} bytes; try again")
            return bytes(body)
        body += block
    raise TooLargeError(f"{name}: is larger than {max_bytes / 1e6:g} MB; send a shorter recording")


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
