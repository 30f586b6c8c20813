"""The HTTP server: one process that stops gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ecapa_jax.errors import EcapaError

HEADER_SECONDS = 10.0
"""A connection is closed if it has not sent the headers of its request by then."""
MAX_CONNECTIONS = 1000


class HttpProtocol(H11Protocol):
    """uvicorn's protocol with a time limit on the headers of a request, which uvicorn lacks."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override, unused-ignore]
        """Starts the time limit."""
        super().connection_made(transport)
        self._head = self.loop.call_later(HEADER_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        """Starts the time limit again for the next request."""
        super().data_received(data)
        waiting = self.conn.their_state is h11.IDLE
        if self._head is not None and not waiting:
            self._head.cancel()
            self._head = None
        elif self._head is None and waiting and self.timeout_keep_alive_task is None:
            self._head = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the time limit."""
        if self._head is not None:
            self._head.cancel()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """uvicorn's server, but `run` returns after a signal, where uvicorn's raises the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stops on SIGINT and SIGTERM, and without waiting on a second SIGINT."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {kind: signal.signal(kind, self.handle_exit) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on the address.

    Raises:
      EcapaError: the address is in use, or does not belong to this machine.
    """
    if not 0 <= port <= 65535:
        raise EcapaError(f"port {port} does not exist; choose a --port from 0 to 65535")
    try:
        (family, *_), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise EcapaError(f"can't listen on {host} port {port} ({reason}); choose another --host or --port") from error


def format_address(sock: socket.socket) -> str:
    """Returns the URL to open in a browser."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def make_server(app: FastAPI, *, stop_seconds: float) -> uvicorn.Server:
    """Returns a server; `run(sockets=[...])` serves until a signal arrives and the current requests are answered."""
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(stop_seconds)),
    )
    return _Server(config)
