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
"""What each error of a request is answered with; the first that fits."""


def create_app(service: Service, *, warm_up: float = 0.0) -> FastAPI:
    """The ASGI app of a service, which it closes at its end.

    Args:
      service: what it answers with.
      warm_up: compile for recordings up to these seconds before the first request is taken.
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
    _describe(app)
    app.add_middleware(Guard, settings=service.settings)
    return app


def _describe(app: FastAPI) -> None:
    """The OpenAPI, with forms as they are: no field of a form can be null, what is optional is left out."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for name, component in described()["components"]["schemas"].items():
                if name.startswith("Body_"):
                    component["properties"] = {key: _not_null(value) for key, value in component["properties"].items()}
        return described()

    app.openapi = openapi  # type: ignore[method-assign, unused-ignore]


def _not_null(field: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in field.pop("anyOf", []) if kind != {"type": "null"}]
    for kind in kinds:
        field |= kind
    for file in (field, field.get("items", {})):
        if file.pop("contentMediaType", None):
            file["format"] = "binary"  # which tools know as a file
    return field


def _add_page(app: FastAPI) -> None:
    @app.get("/healthz", tags=["about"])
    async def healthz(request: Request) -> schema.Health:
        """That the service is up, and how well it batches."""
        service: Service = request.app.state.service
        batcher = service.batcher
        return schema.Health(model=service.name, batches=batcher.batches, utterances=batcher.utterances)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """The page."""
        return FileResponse(_FOLDER / "static" / "index.html")

    app.mount("/static", StaticFiles(directory=_FOLDER / "static"))


def _add_errors(app: FastAPI) -> None:
    for kind, status in STATUS:
        app.add_exception_handler(kind, _told(status))

    @app.exception_handler(StoreError)
    async def store(_: Request, error: Exception) -> JSONResponse:
        _LOG.error("%s", error)  # names the file, which is not for clients
        return _problem(503, "the store of speakers can't be used now; the service's log says why")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        parts = [f"{'.'.join(str(at) for at in one['loc'][1:])}: {one['msg']}" for one in error.errors()]
        return _problem(422, "; ".join(parts))

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        return _problem(500, "internal fault; the service's log has it")


def _told(status: int) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def told(_: Request, error: Exception) -> JSONResponse:
        return _problem(status, str(error))

    return told


def _problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": " ".join(detail.split())}, status, headers=headers)
