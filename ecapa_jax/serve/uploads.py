"""Reads the recordings in a form, which stays in memory. `guard` limits the size of the whole request before."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import HTTPException, Request, Response, UploadFile
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from ecapa_jax.serve.service import Recording, clean_name
from ecapa_jax.serve.settings import LARGEST_BODY, Settings

_MAX_FIELDS = 64
_MAX_FIELD_BYTES = 16_384
_LONGEST_URL = 4_096


class _Parser(MultiPartParser):
    spool_max_size = LARGEST_BODY  # recordings are never written to disk
    _ended = False

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        """Returns the form if it is complete; Starlette would silently drop a part that is cut off."""
        form = await super().parse()
        if not self._ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("it is cut short")
        return form


class _FormRequest(Request):
    """A request whose form is parsed in memory, with limits on the number of files and fields."""

    async def form(self, **_: Any) -> FormData:  # type: ignore[override, unused-ignore]
        """Returns the form."""
        if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise HTTPException(415, "send the recordings as multipart/form-data (curl -F name=@file)")
        settings: Settings = self.app.state.service.settings
        parser = _Parser(
            self.headers,
            self.stream(),
            max_files=settings.max_files,
            max_fields=_MAX_FIELDS,
            max_part_size=_MAX_FIELD_BYTES,
        )
        try:
            return await parser.parse()
        except MultiPartException as error:
            raise HTTPException(400, f"the form can't be read: {' '.join(error.message.split())}") from error
        except (KeyError, LookupError, ValueError) as error:  # no boundary, an unknown charset
            raise HTTPException(400, "the form can't be read: its headers are wrong; use an HTTP library") from error


class FormRoute(APIRoute):
    """A route that reads forms by `_FormRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns the handler, wrapped so that it gets a `_FormRequest`."""
        handler = super().get_route_handler()

        async def handle_form(request: Request) -> Response:
            return await handler(_FormRequest(request.scope, request.receive))

        return handle_form


async def read_recording(upload: UploadFile | None, url: str | None, field: str, settings: Settings) -> Recording:
    """Returns the one recording of a field: a file, or an address if the service allows them."""
    found = await read_recordings([upload] if upload else [], [url] if url else [], field, settings)
    if len(found) > 1:
        raise HTTPException(422, f"{field}: give a file or {field}_url, not both")
    return found[0]


async def read_recordings(
    uploads: Sequence[UploadFile], urls: Sequence[str], field: str, settings: Settings
) -> list[Recording]:
    """Returns the recordings of a field, at least one: files, then addresses if the service allows them."""
    if urls and not settings.allow_urls:
        raise HTTPException(
            403, "this service does not fetch addresses: upload the file, or start the service with --allow-urls"
        )
    if any(len(url) > _LONGEST_URL for url in urls):
        raise HTTPException(422, f"{field}_url: the address is longer than {_LONGEST_URL} characters; give the file")
    if not uploads and not urls:
        raise HTTPException(422, f"{field}: no recording is given; send a file (curl -F {field}=@file)")
    if len(uploads) + len(urls) > settings.max_files:
        raise HTTPException(422, f"{field}: more than {settings.max_files} recordings; send several requests")
    files = [Recording(clean_name(upload.filename, field), await upload.read()) for upload in uploads]
    return files + [Recording(clean_name(url.partition("?")[0], field), url=url) for url in urls]
