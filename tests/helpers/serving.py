"""Services for tests, in this process or on a port of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

for needed in ("fastapi", "fastapi_offline", "uvicorn", "python_multipart", "httpx2"):
    pytest.importorskip(needed, reason="needs the extra serve")

from fastapi.testclient import TestClient

from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.serve.app import create_app
from ecapa_jax.serve.run import format_address, listen, make_server
from ecapa_jax.serve.service import Service
from ecapa_jax.serve.settings import Settings
from helpers.bundles import POINT


@contextlib.contextmanager
def client(encoder: SpeakerEncoder, *, store: SpeakerStore | None = None, **settings: Any) -> Iterator[TestClient]:
    """Yields a client of an app in this process; errors of the app are raised."""
    service = Service(encoder, Settings(**settings), name="small", points=[POINT], store=store)
    with TestClient(create_app(service), base_url="http://127.0.0.1") as talking:
        yield talking


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that runs in a thread."""

    url: str
    port: int
    service: Service
    server: Any


@contextlib.contextmanager
def running(
    encoder: SpeakerEncoder, *, stop_seconds: float = 5.0, store: SpeakerStore | None = None, **settings: Any
) -> Iterator[Running]:
    """Runs a server on a free port of this machine, and stops it at the end."""
    points = [POINT, POINT | {"threshold": 0.5, "far": 0.001, "frr": 0.1}]
    service = Service(encoder, Settings(**settings), name="small", points=points, store=store)
    server = make_server(create_app(service), stop_seconds=stop_seconds)
    with listen("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Running(format_address(sock).rstrip("/"), sock.getsockname()[1], service, server)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
