"""Downloads over http and https, with the standard library only."""

from __future__ import annotations

import http.client
import io
import string
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from ecapa_jax.errors import DownloadError, one_line, without_secrets

_SCHEMES = ("http", "https")
_BLOCK = 1 << 16


def fetch(url: str, *, max_bytes: int = 200_000_000, timeout: float = 30.0) -> bytes:
    """Downloads a URL into memory.

    Any host is allowed, private networks too: a service that takes URLs from strangers must filter them first.

    Args:
      url: address, http or https; redirects are followed within these two schemes only.
      max_bytes: a longer answer is refused, by its declared length where it has one, else while it arrives.
      timeout: seconds to wait for the connection, and for each further piece of data.

    Returns:
      The body of the answer.

    Raises:
      DownloadError: other scheme, unreachable host, HTTP error, answer too large or cut short. The message is one
        line and shows the URL without its query.
    """
    name = without_secrets(url)
    try:
        with open_url(url, timeout=timeout) as response:
            return _read(response, name, max_bytes)
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise explained(error, name, timeout) from error


def open_url(url: str, *, timeout: float, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
    """Opens a URL of http or https, and follows redirects that stay there and do not give up encryption.

    Raises:
      DownloadError: another scheme is asked for, or redirected to.
      OSError, http.client.HTTPException, ValueError: as urllib raises them; `explained` says them in one line.
    """
    _check_scheme(url, without_secrets(url))
    # Addresses are pasted with blanks and accents; a % is left alone, because the rest may be quoted already.
    address = urllib.parse.quote(url.strip(), safe=string.punctuation)
    request = urllib.request.Request(address, headers={"User-Agent": "ecapa-jax", **(headers or {})})
    return _opener().open(request, timeout=timeout)


def explained(error: Exception, name: str, timeout: float) -> DownloadError:
    """What went wrong with the address `name`, in one line."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return DownloadError(f"{name}: the server answered {error.code} {one_line(error.reason)}; check the address")
    if isinstance(error, urllib.error.URLError):
        return DownloadError(f"{name}: can't be reached ({one_line(error.reason)}); check address and network")
    if isinstance(error, TimeoutError):
        return DownloadError(f"{name}: no data for {timeout:g} s; try again, or download it by other means")
    return DownloadError(f"{name}: can't be downloaded ({one_line(error)}); check the address")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects between http and https only: the standard handler would also go on to ftp."""

    def http_error_302(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        """Refuses the new address by its scheme, or follows it as usual."""
        target = urllib.parse.urljoin(req.full_url, headers.get("Location", ""))
        try:
            _check_redirect(req.full_url, target)
        except DownloadError:
            fp.close()
            raise
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows no scheme but http and https (`build_opener` would add file, ftp and data)."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _check_redirect(url: str, target: str) -> None:
    name = f"{without_secrets(url)}: redirects to {without_secrets(target)}"
    _check_scheme(target, name)
    if url.lower().startswith("https:") and not target.lower().startswith("https:"):
        raise DownloadError(f"{name}: which is not encrypted; ask for that address itself, if you trust it")


def _check_scheme(url: str, name: str) -> None:
    scheme = url.partition(":")[0].lower()
    if scheme not in _SCHEMES:
        raise DownloadError(f"{name}: only http and https addresses are downloaded, not {scheme!r}; use a local path")


def _read(response: http.client.HTTPResponse, name: str, max_bytes: int) -> bytes:
    declared = response.length
    too_large = f"{name}: is larger than {max_bytes / 1e6:g} MB; download it yourself and give the path"
    if declared is not None and declared > max_bytes:
        raise DownloadError(too_large)
    body = io.BytesIO()
    while block := response.read1(_BLOCK):
        body.write(block)
        if body.tell() > max_bytes:
            raise DownloadError(too_large)
    # http.client reports a connection closed early only to a reader that asks for everything at once.
    if declared is not None and body.tell() < declared:
        raise DownloadError(f"{name}: the connection closed after {body.tell()} of {declared} bytes; try again")
    return body.getvalue()
