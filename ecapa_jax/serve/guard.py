"""What stands before every request: origin, token, number, size and time."""

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

_DRAIN = 4  # of a body that is too large, this many times the limit is taken in so that the sender hears why


class _Refused(Exception):
    def __init__(self, status: int, detail: str, **headers: str):
        self.status, self.detail, self.headers = status, detail, headers


class _Gone(Exception):
    """The client left."""


class Guard:
    """ASGI middleware that holds a request back until it is there whole, and refuses what is over a limit.

    Bodies are kept in memory, `max_requests` of at most `max_bytes`. Nothing that a client does not send, or does not
    take, keeps a place for longer than `body_seconds`.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self.settings = settings
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        safe = self._guarded_send(scope["path"], send)
        with contextlib.suppress(_Gone):
            try:
                await self._pass(scope, receive, safe)
            except _Refused as refused:
                await _answer(refused, safe)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if refused := self._refusal(scope, headers):
            # A connection that is closed on a sender tells him nothing: what he has to say is taken in, and dropped.
            await self._body(headers, receive, keep=False)
            raise refused
        if not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        self.running += 1
        try:
            body = await self._body(headers, receive)
            await self.app(scope, _replay(body, receive), send)
        finally:
            self.running -= 1

    def _refusal(self, scope: Scope, headers: Headers) -> _Refused | None:
        host = headers.get("host", "")
        if self.settings.loopback and not is_loopback(urllib.parse.urlsplit(f"//{host}").hostname or ""):
            return _Refused(403, "this service answers on this machine only: use localhost or 127.0.0.1")
        origin = headers.get("origin")  # no other site may use a visitor's browser to reach this service
        if origin is not None and urllib.parse.urlsplit(origin).netloc.lower() != host.lower():
            return _Refused(403, "requests of other sites' pages are not taken")
        if not scope["path"].startswith("/v1/"):
            return None
        if not self.settings.admits(headers.get("authorization", "")):
            wanted = {"www-authenticate": "Bearer"}
            return _Refused(401, "this service asks for its token: Authorization: Bearer TOKEN", **wanted)
        if self.running >= self.settings.max_requests:
            return _Refused(429, "too many requests at once; try again in a second", **{"retry-after": "1"})
        return None

    async def _body(self, headers: Headers, receive: Receive, *, keep: bool = True) -> bytes:
        limit, declared = self.settings.max_bytes, headers.get("content-length", "")
        too_large = _Refused(413, f"the request is larger than {limit / 1e6:g} MB; send shorter recordings")
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
                        raise _Gone
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
                    if size > _DRAIN * limit:
                        raise too_large
                    if keep and max(size, wanted) <= limit:
                        body += message.get("body", b"")
                    else:
                        body.clear()
        except TimeoutError:
            late = f"the request was not there whole after {self.settings.body_seconds:g} s; send it again"
            raise _Refused(408, late) from None
        if size > limit:
            raise too_large
        return bytes(body)

    def _guarded_send(self, path: str, send: Send) -> Send:
        async def guarded(message: Message) -> None:
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
                raise _Gone from None

        return guarded


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body in one message; then whatever else comes."""
    parts = [body]

    async def replayed() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await receive()

    return replayed


async def _answer(refused: _Refused, send: Send) -> None:
    content = json.dumps({"detail": refused.detail}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in (headers | refused.headers).items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
