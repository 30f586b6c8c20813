"""The limits of the service."""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress

from ecapa_jax.errors import ConfigError

LARGEST_BODY = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and permissions, from the options of `ecapa-jax serve`.

    Attributes:
      host: address to listen on; by default only this machine can reach it.
      max_bytes: largest request, all its files together.
      max_seconds: longest recording.
      max_files: most files in one request.
      max_requests: most requests handled at once; further ones get status 429.
      body_seconds: a request that has not arrived completely by then gets status 408.
      token: required by `/v1`; None requires no token.
      allow_urls: whether a request may name recordings by public http(s) addresses.
      any_sound: whether recordings without speech can be enrolled and identified.
    """

    host: str = "127.0.0.1"
    max_bytes: int = 20_000_000
    max_seconds: float = 60.0
    max_files: int = 16
    max_requests: int = 32
    body_seconds: float = 30.0
    token: str | None = None
    allow_urls: bool = False
    any_sound: bool = False

    def __post_init__(self) -> None:
        _require(0 < self.max_bytes <= LARGEST_BODY, f"max-mb must be above 0 and at most {LARGEST_BODY / 1e6:.0f}")
        _require(0 < self.max_seconds <= 6 * 3600, "max-seconds must be above 0 and at most 21600")
        _require(self.max_requests >= 1, "max-requests must be 1 or more")
        _require(self.body_seconds > 0, "body-seconds must be above 0")
        empty = "the token is empty (an unset variable?); give one, or leave out --token and unset ECAPA_JAX_TOKEN"
        _require(self.token != "", empty)
        plain = self.token is None or (self.token.isascii() and self.token.isprintable() and " " not in self.token)
        _require(plain, "the token must be printable ASCII without spaces")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    def admits(self, authorization: str) -> bool:
        """Returns whether an Authorization header holds the token, if one is required."""
        if self.token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())


def is_loopback(host: str) -> bool:
    """Returns whether a name or address is a loopback one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
