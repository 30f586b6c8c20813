"""The app: API, page, documentation, and errors as one line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from ecapa_jax.errors import AudioError, ConfigError, DownloadError, Stopped, StoreError, TooLongError
from ecapa_jax.serve import schema
from ecapa_jax.serve.fetch import TooLargeError
from ecapa_jax.serve.guard import DOCS, Guard
from ecapa_jax.serve.routes import router
from ecapa_jax.serve.service import Service

_LOG = logging.getLogger("uvicorn.error")
_FOLDER = Path(str(resources.files("ecapa_jax.serve")))

STATUS: list[tuple[type[Exception], int]] = [
    (TooLongError, 413),
    (TooLargeError, 413),
    (AudioError, 422),
    (ConfigError, 422),
    (DownloadError, 422),
    (Stopped, 503),
]
"""The HTTP status for each error; the first that fits is used."""


def create_app(service: Service, *, warm_up: float = 0.0) -> FastAPI:
    """Returns the ASGI app of a service; the app closes the service when it shuts down.

    Args:
      service: answers the requests.
      warm_up: compile for recordings up to this many seconds before accepting the first request.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if warm_up:
            service.warm_up(warm_up)
        try:
            yield
        finally:
            service.close()

    app = FastAPIOffline(
        title="ecapa-jax",
        description="Speaker verification with ECAPA-TDNN: score two recordings, embed, enrol and identify speakers.",
        version="1",
        docs_url=DOCS,
        redoc_url=None,
        static_url=f"{DOCS}/static",
        favicon_url="/static/icon.svg",
        swagger_ui_oauth2_redirect_url=f"{DOCS}/redirect",
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    _add_page(app)
    _add_errors(app)
    _correct_openapi(app)
    app.add_middleware(Guard, settings=service.settings)
    return app


def _correct_openapi(app: FastAPI) -> None:
    """Corrects the OpenAPI document: a field of a form can be left out, but it can't be null."""
    build_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for name, component in build_openapi()["components"]["schemas"].items():
                if name.startswith("Body_"):
                    component["properties"] = {key: _drop_null(value) for key, value in component["properties"].items()}
        return build_openapi()

    app.openapi = openapi  # type: ignore[method-assign, unused-ignore]


def _drop_null(field: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in field.pop("anyOf", []) if kind != {"type": "null"}]
    for kind in kinds:
        field |= kind
    for file in (field, field.get("items", {})):
        if file.pop("contentMediaType", None):
            file["format"] = "binary"  # the form in which tools recognise a file
    return field


def _add_page(app: FastAPI) -> None:
    @app.get("/healthz", tags=["about"])
    async def healthz(request: Request) -> schema.Health:
        """Reports that the service is up, and how many requests share a batch."""
        service: Service = request.app.state.service
        batcher = service.batcher
        return schema.Health(model=service.name, batches=batcher.batches, utterances=batcher.utterances)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """Sends the page."""
        return FileResponse(_FOLDER / "static" / "index.html")

    app.mount("/static", StaticFiles(directory=_FOLDER / "static"))


def _add_errors(app: FastAPI) -> None:
    for kind, status in STATUS:
        app.add_exception_handler(kind, _make_handler(status))

    @app.exception_handler(StoreError)
    async def handle_store(_: Request, error: Exception) -> JSONResponse:
        _LOG.error("%s", error)  # names the file, which is not for clients
        return _make_answer(503, "the speaker store can't be used now; see the service's log")

    @app.exception_handler(HTTPException)
    async def handle_refusal(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _make_answer(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def handle_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        parts = [f"{'.'.join(str(key) for key in fault['loc'][1:])}: {fault['msg']}" for fault in error.errors()]
        return _make_answer(422, "; ".join(parts))

    @app.exception_handler(Exception)
    async def handle_fault(_: Request, error: Exception) -> JSONResponse:
        return _make_answer(500, "internal error; see the service's log")


def _make_handler(status: int) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def handle(_: Request, error: Exception) -> JSONResponse:
        return _make_answer(status, str(error))

    return handle


def _make_answer(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": " ".join(detail.split())}, status, headers=headers)
