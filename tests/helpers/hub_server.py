"""A local server that imitates the Hugging Face hub, ModelScope and plain file servers, with optional faults."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclasses.dataclass
class Fault:
    """A fault of a single response.

    Attributes:
      status: the status code that replaces the file.
      headers: headers to add to the response; None removes a header.
      cut: the number of bytes to send before the connection closes.
      location: the target of a redirect.
      slow: seconds to wait after `cut` bytes.
    """

    status: int | None = None
    headers: dict[str, str | None] = dataclasses.field(default_factory=dict)
    cut: int | None = None
    location: str | None = None
    slow: float = 0.0


class QuietServer(http.server.ThreadingHTTPServer):
    """A server that prints no traceback if a client closes the connection, which some tests do intentionally."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints errors other than closed connections."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclasses.dataclass
class Server:
    """The contents of the server, its planned faults, and the requests that it has received.

    Attributes:
      repositories: the files of each `org/name`, on both hubs.
      plain: the content of each plain path.
      faults: the faults of the next requests whose path contains the key, in order.
      etags: the ETag of each path whose ETag is not the sha256.
      ranges: whether the server supports range requests.
      revisions: the revisions that exist in addition to the commit.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    plain: dict[str, bytes] = dataclasses.field(default_factory=dict)
    faults: dict[str, list[Fault]] = dataclasses.field(default_factory=dict)
    etags: dict[str, str] = dataclasses.field(default_factory=dict)
    ranges: bool = True
    revisions: tuple[str, ...] = ("main", "master", "v1.0.1", "v1.0.0")
    requests: list[tuple[str, str, dict[str, str]]] = dataclasses.field(default_factory=list)

    def requests_to(self, part: str, method: str = "GET") -> list[dict[str, str]]:
        """Returns the headers of the requests whose path contains `part`."""
        return [headers for verb, path, headers in self.requests if part in path and verb == method]

    def fault(self, path: str, method: str) -> Fault:
        for part, faults in self.faults.items():
            if part in path and method == "GET" and faults:
                return faults.pop(0)
        return Fault()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Server

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path)
        self.hub.requests.append((self.command, path, dict(self.headers.items())))
        fault = self.hub.fault(path, self.command)
        with contextlib.suppress(ConnectionError):
            if fault.location is not None:
                self._answer(302, b"", {"Location": fault.location})
            elif fault.status is not None:
                self._answer(fault.status, b"no\nway", {**fault.headers})
            elif (found := self._find(path)) is None:
                self._answer(404, b"no such thing", self._missing(path))
            else:
                self._file(*found, fault)

    do_HEAD = do_GET

    def _find(self, path: str) -> tuple[bytes, dict[str, str | None]] | None:
        url = urllib.parse.urlsplit(path)
        if path in self.hub.plain:
            return self.hub.plain[path], {}
        parts = url.path.strip("/").split("/")
        if parts[:3] == ["api", "v1", "models"]:
            return self._modelscope("/".join(parts[3:5]), parts[5:], dict(urllib.parse.parse_qsl(url.query)))
        if parts[:2] == ["api", "models"]:
            return self._listing("/".join(parts[2:4]), parts[4:])
        if parts[2:3] == ["resolve"] and parts[3] in (*self.hub.revisions, COMMIT):
            content = self.hub.repositories.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
            return None if content is None else (content, {"X-Repo-Commit": COMMIT})
        return None

    def _listing(self, name: str, rest: list[str]) -> tuple[bytes, dict[str, str | None]] | None:
        files = self.hub.repositories.get(name)
        if files is None or (rest[:1] == ["revision"] and rest[1] not in (*self.hub.revisions, COMMIT)):
            return None
        siblings = [
            {
                "rfilename": file,
                "size": len(content),
                "blobId": "0" * 40,
                **(
                    {"lfs": {"sha256": _sha256(content), "size": len(content), "pointerSize": 134}}
                    if _large(file)
                    else {}
                ),
            }
            for file, content in files.items()
        ]
        document = {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
        return json.dumps(document).encode(), {"Content-Type": "application/json"}

    def _modelscope(
        self, name: str, rest: list[str], query: dict[str, str]
    ) -> tuple[bytes, dict[str, str | None]] | None:
        files = self.hub.repositories.get(name)
        if files is None or query.get("Revision") not in self.hub.revisions:
            return None
        if rest == ["repo", "files"]:
            entries: list[dict[str, Any]] = [
                {
                    "Name": file.split("/")[-1],
                    "Path": file,
                    "Size": len(content),
                    "Sha256": _sha256(content),
                    "Type": "blob",
                }
                for file, content in files.items()
            ]
            folders = [{"Name": "examples", "Path": "examples", "Size": 0, "Sha256": "", "Type": "tree"}]
            return json.dumps({"Code": 200, "Data": {"Files": folders + entries}}).encode(), {}
        content = files.get(query.get("FilePath", ""))
        return None if rest != ["repo"] or content is None else (content, {})

    def _missing(self, path: str) -> dict[str, str | None]:
        """Returns the error headers with which the Hugging Face hub says what is missing."""
        known = any(name in path for name in self.hub.repositories)
        return {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}

    def _file(self, content: bytes, headers: dict[str, str | None], fault: Fault) -> None:
        etag = self.hub.etags.get(self.path, f'"{_sha256(content)}"')
        start, wanted = 0, self.headers.get("Range")
        if wanted and self.hub.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers |= {"ETag": etag, "Content-Length": str(len(content) - start), **fault.headers}
        self._answer(206 if start else 200, content[start:], headers, fault)

    def _answer(self, status: int, body: bytes, headers: dict[str, str | None], fault: Fault | None = None) -> None:
        fault = fault or Fault()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if fault.cut is None else body[: fault.cut])
        self.wfile.flush()
        time.sleep(fault.slow)
        if fault.cut is not None or fault.headers:
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Prints nothing."""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _large(name: str) -> bool:
    return name.endswith((".bin", ".ckpt", ".pt"))


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Runs a server in a thread on a free port of this machine."""
    hub = Server()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with QuietServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        hub.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            running.shutdown()
            thread.join()
