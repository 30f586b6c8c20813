"""Checks every request before the app sees it: origin, token, number, size and time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.parse

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ecapa_jax.serve.settings import Settings, is_loopback

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DOCS = "/docs"

_DRAIN = 4  # a body up to this many times the limit is read and dropped, so that the sender gets the answer


class _RefusedError(Exception):
    def __init__(self, status: int, detail: str, **headers: str):
        self.status, self.detail, self.headers = status, detail, headers


class _ClientGoneError(Exception):
    """The client has closed the connection."""


class Guard:
    """ASGI middleware that passes a request on when it has arrived completely, and refuses it if it is over a limit.

    Bodies stay in memory: at most `max_requests` of at most `max_bytes` each. A client that stops sending or receiving
    occupies a place for at most `body_seconds`.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self.settings = settings
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        safe = self._make_guarded_send(scope["path"], send)
        with contextlib.suppress(_ClientGoneError):
            try:
                await self._handle(scope, receive, safe)
            except _RefusedError as refused:
                await _send_refusal(refused, safe)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if refused := self._find_refusal(scope, headers):
            # A client that is still sending does not read the answer, so its body is read and dropped first.
            await self._read_body(headers, receive, keep=False)
            raise refused
        if not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        self.running += 1
        try:
            body = await self._read_body(headers, receive)
            await self.app(scope, _make_replay(body, receive), send)
        finally:
            self.running -= 1

    def _find_refusal(self, scope: Scope, headers: Headers) -> _RefusedError | None:
        host = headers.get("host", "")
        if self.settings.loopback and not is_loopback(urllib.parse.urlsplit(f"//{host}").hostname or ""):
            return _RefusedError(403, "this service answers on this machine only: use localhost or 127.0.0.1")
        origin = headers.get("origin")  # no other site may use a visitor's browser to reach this service
        if origin is not None and urllib.parse.urlsplit(origin).netloc.lower() != host.lower():
            return _RefusedError(403, "requests from the pages of other sites are refused")
        if not scope["path"].startswith("/v1/"):
            return None
        if not self.settings.admits(headers.get("authorization", "")):
            wanted = {"www-authenticate": "Bearer"}
            return _RefusedError(401, "this service requires its token: Authorization: Bearer TOKEN", **wanted)
        if self.running >= self.settings.max_requests:
            return _RefusedError(429, "too many requests at once; try again in a second", **{"retry-after": "1"})
        return None

    async def _read_body(self, headers: Headers, receive: Receive, *, keep: bool = True) -> bytes:
        limit, declared = self.settings.max_bytes, headers.get("content-length", "")
        too_large = _RefusedError(413, f"the request is larger than {limit / 1e6:g} MB; send shorter recordings")
        wanted = int(declared) if declared.isdecimal() else 0
        if wanted > _DRAIN * limit:
            raise too_large
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGoneError
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
                    if size > _DRAIN * limit:
                        raise too_large
                    if keep and max(size, wanted) <= limit:
                        body += message.get("body", b"")
                    else:
                        body.clear()
        except TimeoutError:
            late = f"the request had not arrived completely after {self.settings.body_seconds:g} s; send it again"
            raise _RefusedError(408, late) from None
        if size > limit:
            raise too_large
        return bytes(body)

    def _make_guarded_send(self, path: str, send: Send) -> Send:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                policy = DOCS_POLICY if path.startswith(DOCS) else PAGE_POLICY
                headers["content-security-policy"] = policy
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers.setdefault("cache-control", "no-store" if path.startswith("/v1/") else "no-cache")
            try:
                async with asyncio.timeout(self.settings.body_seconds):
                    await send(message)
            except TimeoutError:
                raise _ClientGoneError from None

        return send_guarded


def _make_replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives the whole body in one message, then passes on later messages."""
    parts = [body]

    async def receive_replay() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await receive()

    return receive_replay


async def _send_refusal(refused: _RefusedError, send: Send) -> None:
    content = json.dumps({"detail": refused.detail}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in (headers | refused.headers).items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
