"""The one HTTP client: httpx, with checks on addresses, redirects, status and size, and errors of one line."""

from __future__ import annotations

import contextlib
import email.utils
import re
import ssl
import time
import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from ecapa_jax.errors import DownloadError, one_line, without_secrets

if TYPE_CHECKING:  # at run time it is imported when something is fetched
    import httpx2

PARTIAL, OUT_OF_RANGE = 206, 416
_BUSY = (429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class TransientError(DownloadError):
    """A download failed in a way that another attempt may not; the server asks to wait `after` seconds first."""

    def __init__(self, message: str, after: float = 0.0):
        super().__init__(message)
        self.after = after


class TooLargeError(DownloadError):
    """The answer is larger than the caller allows."""


def fetch(
    url: str,
    *,
    max_bytes: int = 200_000_000,
    timeout: float = 30.0,
    redirects: int = 10,
    transport: httpx2.BaseTransport | None = None,
    remedy: str = "download it yourself and give the path",
) -> bytes:
    """Downloads a URL into memory.

    Any host is allowed, private networks too: a service that takes URLs from strangers uses `serve.fetch`.

    Args:
      url: as for `open_url`, like `timeout`, `redirects` and `transport`.
      max_bytes: as for `read_blocks`, like `remedy`.

    Raises:
      DownloadError: as `open_url` and `read_blocks`.
    """
    with open_url(url, timeout=timeout, redirects=redirects, transport=transport) as response:
        return b"".join(read_blocks(response, without_secrets(url), max_bytes, remedy))


@contextlib.contextmanager
def open_url(
    url: str,
    *,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    accept: Collection[int] = (),
    redirects: int = 10,
    transport: httpx2.BaseTransport | None = None,
) -> Iterator[httpx2.Response]:
    """Opens a URL and follows redirects that stay with http and https and keep the encryption.

    Args:
      url: http or https.
      timeout: seconds to wait for the connection, and for each further piece of data.
      headers: added to the request.
      accept: status codes to return, besides those of success.
      redirects: how many to follow at most.
      transport: replaces httpx's own, and the proxies that the environment names.

    Raises:
      DownloadError: other scheme, unreachable host, HTTP error or, while the caller reads the answer, a connection
        that closes early. The message is one line and shows the URL without its query.
    """
    import httpx2

    name = without_secrets(url)
    _check_scheme(url, name)
    sent = {"User-Agent": "ecapa-jax", "Accept-Encoding": "identity", **(headers or {})}
    response: httpx2.Response | None = None
    try:
        if not httpx2.URL(url.strip()).host:
            raise DownloadError(f"{name}: can't be downloaded (it names no host); check the address")
        with (
            httpx2.Client(
                verify=ssl.create_default_context() if transport is None else True,
                transport=transport,
                timeout=timeout,
                follow_redirects=True,
                max_redirects=redirects,
                event_hooks={"response": [_check_location]},
            ) as client,
            client.stream("GET", url.strip(), headers=sent) as response,
        ):
            if not response.is_success and response.status_code not in accept:
                raise _status_error(response, name)
            yield response
    except httpx2.TooManyRedirects as error:
        raise DownloadError(
            f"{name}: redirects more than {redirects} times, perhaps in an infinite loop; give the file's own address"
        ) from error
    except httpx2.TimeoutException as error:
        raise TransientError(f"{name}: no data for {timeout:g} s; try again, or download it by other means") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError, ImportError) as error:
        raise _explain_error(error, name, response) from error


def read_blocks(response: httpx2.Response, name: str, max_bytes: int, remedy: str) -> Iterator[bytes]:
    """Yields the body of an answer from `open_url`.

    Args:
      response: the answer.
      name: the address, for messages.
      max_bytes: a larger file is refused, by its declared length where it has one, else while it arrives.
      remedy: what to do about a file that is too large.

    Raises:
      TooLargeError: the file is larger than `max_bytes`.
    """
    done, total = find_place(response)
    too_large = TooLargeError(f"{name}: is larger than {max_bytes / 1e6:g} MB; {remedy}")
    if max(total or 0, done) > max_bytes:
        raise too_large
    for block in response.iter_raw():
        done += len(block)
        if done > max_bytes:
            raise too_large
        yield block


def find_place(response: httpx2.Response) -> tuple[int, int | None]:
    """Returns where the answer's bytes belong in the file, and how many the whole file has (None: not declared).

    An answer with a part of the file that does not say which part it is belongs at -1.
    """
    if response.status_code == PARTIAL:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        return (int(found[1]), None if found[2] == "*" else int(found[2])) if found else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def retry_after(headers: Mapping[str, str]) -> float:
    """Returns the seconds of a Retry-After header, which holds seconds or a date; 0 without one or for a broken one."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def check_redirect(url: str, target: str) -> None:
    """Raises DownloadError if a redirect leaves http and https, or gives up the encryption."""
    name = f"{without_secrets(url)}: redirects to {without_secrets(target)}"
    _check_scheme(target, name)
    if url.lower().startswith("https:") and not target.lower().startswith("https:"):
        raise DownloadError(f"{name}, which is not encrypted; give that address itself if you trust it")


def _check_scheme(url: str, name: str) -> None:
    scheme = url.strip().partition(":")[0].lower()
    if scheme not in ("http", "https"):
        raise DownloadError(
            f"{name}: only http and https addresses are downloaded, not {scheme!r}; give the file itself"
        )


def _check_location(response: httpx2.Response) -> None:
    """Checks where an answer redirects to, and drops its body, which httpx would read and unpack without a limit."""
    import httpx2

    if response.has_redirect_location:
        url = str(response.request.url)
        check_redirect(url, urllib.parse.urljoin(url, response.headers["Location"]))
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream.close()
        response.stream = httpx2.ByteStream(b"")


def _status_error(response: httpx2.Response, name: str) -> DownloadError:
    status = f"{response.status_code} {response.reason_phrase}".strip()
    if response.status_code in _BUSY:
        return TransientError(f"{name}: the server is busy or faulty ({status})", retry_after(response.headers))
    if response.is_redirect:
        return DownloadError(f"{name}: redirects to nowhere ({status}); check the address")
    return DownloadError(f"{name}: the server answered {status}; check the address")


def _explain_error(error: Exception, name: str, response: httpx2.Response | None) -> DownloadError:
    """Returns the error that the user sees. Without a network every attempt fails at once, so that is final."""
    import httpx2

    if isinstance(error, httpx2.ConnectError) and "SSL" not in str(error):
        return DownloadError(f"{name}: can't be reached ({one_line(error)}); check address and network")
    message = f"{name}: can't be downloaded ({one_line(error)}); check the address"
    if not isinstance(error, httpx2.ReadError | httpx2.WriteError | httpx2.RemoteProtocolError):
        return DownloadError(message)
    start, total = (0, None) if response is None else find_place(response)
    if response is not None and total is not None:
        message = f"{name}: the connection closed after {start + response.num_bytes_downloaded} of {total} bytes"
    return TransientError(message)
