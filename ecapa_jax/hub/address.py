"""Addresses of models on the network: `hf:org/name`, `modelscope:org/name`, `https://host/file`."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import urllib.parse

from ecapa_jax.errors import DownloadError, without_secrets

HUBS = ("hf", "modelscope")
WEB = ("https", "http")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}")
_PAGE = re.compile(r"huggingface\.co/([^/]+/[^/]+)|(?:www\.)?modelscope\.(?:cn|ai)/models/([^/]+/[^/]+)")
_FORMS = "hf:ORG/NAME, modelscope:ORG/NAME (both with @REVISION, where one is wanted) or https://HOST/FILE"


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a model is.

    Attributes:
      scheme: `hf`, `modelscope`, `https` or `http`.
      name: `org/name` on a hub, else the whole URL.
      revision: branch, tag or commit on a hub; None stands for the one in `convert.published`, or the hub's newest.
    """

    scheme: str
    name: str
    revision: str | None = None

    @property
    def base(self) -> str:
        """The address without its revision, as it stands in the table of published models."""
        return f"{self.scheme}:{self.name}" if self.scheme in HUBS else self.name

    def __str__(self) -> str:
        """Returns the form for messages and records: a URL loses its query, which may hold keys."""
        if self.scheme in WEB:
            return without_secrets(self.name)
        return self.base + (f"@{self.revision}" if self.revision else "")

    def folder(self, *more: object) -> str:
        """Returns a unique folder name for this address, its revision, and `more` that the content depends on."""
        digest = hashlib.sha256("\n".join(map(str, (self.base, self.revision, *more))).encode()).hexdigest()
        title = self.name if self.scheme in HUBS else urllib.parse.urlsplit(self.name).path
        return f"{self.scheme}-{re.sub('[^A-Za-z0-9.-]+', '-', title).strip('-.')[-80:]}-{digest[:12]}"


def is_address(text: str) -> bool:
    """Returns whether a name has the form of an address, valid or not, rather than of a path."""
    return _SCHEME.match(text) is not None


def parse(text: str) -> Address:
    """Reads an address.

    Raises:
      DownloadError: the scheme is unknown, or the address is malformed.
    """
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if scheme in WEB:
        return _parse_url(scheme, text)
    if scheme not in HUBS:
        what = f"{scheme!r} is no known scheme" if found else "it has no scheme"
        raise DownloadError(f"{without_secrets(text)}: is neither a path nor an address ({what}); addresses: {_FORMS}")
    name, at, revision = text[len(scheme) + 1 :].partition("@")
    parts = name.split("/")
    if len(parts) != 2 or not all(_PART.fullmatch(part) and ".." not in part for part in parts):
        raise DownloadError(
            f"{_escape(text)}: {scheme}: takes ORG/NAME, made of letters, digits and . _ -; check the name"
        )
    if at and (not _REVISION.fullmatch(revision) or any(part in ("", ".", "..") for part in revision.split("/"))):
        raise DownloadError(f"{_escape(text)}: the text after @ is no revision; give a branch, tag or commit")
    return Address(scheme, name, revision or None)


def _parse_url(scheme: str, text: str) -> Address:
    name = without_secrets(text)
    try:
        parts = urllib.parse.urlsplit(text.strip())
        host, user = parts.hostname, parts.username or parts.password
    except ValueError as error:
        raise DownloadError(f"{name}: is no address ({error}); check it") from error
    if not host or not parts.path.strip("/") or not text.isprintable():
        raise DownloadError(f"{name}: names no file on a host; addresses: {_FORMS}")
    if page := _PAGE.fullmatch(f"{host}{parts.path.rstrip('/')}"):
        scheme = "hf" if page[1] else "modelscope"
        raise DownloadError(f"{name}: is a page about a model; its address is {scheme}:{page[1] or page[2]}")
    if user:
        raise DownloadError(
            f"{name}: holds a user or password, which ecapa-jax does not send; download the file yourself"
        )
    return Address(scheme, urllib.parse.urlunsplit(parts._replace(scheme=scheme, fragment="")))


def _escape(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:200])
