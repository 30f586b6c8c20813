"""Downloads one large file: resumes, retries, checks, and puts it in place only when it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ecapa_jax.errors import DownloadError, without_secrets
from ecapa_jax.hub.cache import explain_disk_errors
from ecapa_jax.hub.http import OUT_OF_RANGE, PARTIAL, TransientError, fetch, find_place, open_url, read_blocks

if TYPE_CHECKING:
    import httpx2

Report = Callable[[int, int | None], None]
"""Called with the number of bytes received so far, and of all bytes if that is known."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """How patient a download is; times in seconds.

    Attributes:
      timeout: for the connection, and for each further piece of data.
      attempts: how often the file is tried in all while faults are transient.
      pause: before the second attempt; doubled for each further one.
      longest_pause: the download gives up if the server asks for a longer pause (Retry-After).
      max_bytes: no speaker model is larger.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0
    longest_pause: float = 60.0
    max_bytes: int = 4_000_000_000


@dataclasses.dataclass(frozen=True)
class File:
    """The size of a file in bytes, and its sha256."""

    size: int
    sha256: str


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    policy: Policy | None = None,
    report: Report = lambda done, total: None,
) -> File:
    """Downloads a URL to `path`, which appears only when it is whole and right.

    What came before a fault, or before the process was killed, stays in `.NAME.partial` beside it. The next call
    resumes there if the server still has the same version (ETag or Last-Modified), else it starts again.

    Args:
      url: http or https.
      path: the file to make, in a folder that exists.
      size: bytes, where known.
      sha256: in hexadecimal, where known.
      policy: how often to try, and how long to wait.
      report: for a progress bar.

    Raises:
      DownloadError: refused, unreachable, missing, cut short each time, of another size or sha256, too large, or there
        is no room on the disk. One line, without the URL's query.
    """
    policy = policy or Policy()
    part = _PartialFile(path, url)
    retry(policy, lambda: part.fetch_rest(size, policy, report))
    with explain_disk_errors(path.parent):
        file = describe(part.path)
        problem = ""
        if size not in (None, file.size):
            problem = f"is {file.size} bytes, {size} were expected; try again, or report it"
        elif sha256 is not None and file.sha256 != sha256.lower():
            problem = (
                f"its sha256 is {file.sha256}, {sha256} was expected: it is not the file that was published, "
                "or it was damaged on the way; try again"
            )
        if problem:
            part.discard()
            raise DownloadError(f"{part.name}: {problem}")
        part.finish(path)
    return file


def describe(path: Path) -> File:
    """Returns the size and the sha256 of a file."""
    with path.open("rb") as file:
        return File(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def retry(policy: Policy, action: Callable[[], T]) -> T:
    """Calls `action` again while it raises `TransientError`, with growing pauses or those that the server asks for.

    Raises:
      DownloadError: the last fault, when no attempt is left or the server asks for a longer pause than allowed.
    """
    for attempt in range(policy.attempts):
        try:
            return action()
        except TransientError as error:
            if error.after > policy.longest_pause:
                raise DownloadError(f"{error}; it asks to wait {error.after:.0f} s") from error
            if attempt + 1 == policy.attempts:
                raise DownloadError(f"{error} (tried {policy.attempts} times); run again to continue") from error
            time.sleep(max(policy.pause * 2**attempt, error.after))
    raise AssertionError("attempts is at least 1")


def get_json(url: str, policy: Policy) -> Any:
    """Downloads a small JSON document, with retries.

    Raises:
      DownloadError: as `download`; also if it is no JSON.
    """
    try:
        return json.loads(retry(policy, lambda: fetch(url, max_bytes=20_000_000, timeout=policy.timeout)))
    except (ValueError, RecursionError) as error:
        name = without_secrets(url)
        raise DownloadError(f"{name}: the answer is no JSON; a proxy or a log-in page may have sent it") from error


class _PartialFile:
    """The part of a file that has arrived, and a note that says of which version it is."""

    def __init__(self, path: Path, url: str):
        self.url, self.name = url, without_secrets(url)
        self.path = path.with_name(f".{path.name}.partial")
        self._note = path.with_name(f".{path.name}.partial.json")
        self._origin = hashlib.sha256(url.encode()).hexdigest()  # not the URL, which may hold keys

    def fetch_rest(self, size: int | None, policy: Policy, report: Report) -> None:
        """Makes one attempt, from where the last one ended; returns when the server has sent all."""
        offset, version = self._read_state()
        headers = {"Range": f"bytes={offset}-", "If-Range": version} if offset else {}
        with open_url(self.url, timeout=policy.timeout, headers=headers, accept=(OUT_OF_RANGE,)) as response:
            status = response.status_code
            if status == OUT_OF_RANGE and response.headers.get("Content-Range") == f"bytes */{offset}":
                return  # all of it is there: the process was killed before it moved the file
            done, total = find_place(response)
            same = done == offset and _version_of(response) in ("", version)
            if status == OUT_OF_RANGE or (status == PARTIAL and not same):
                self.discard()
                raise TransientError(f"{self.name}: the server did not send the part after {offset} bytes")
            if size is not None and total not in (None, size):
                raise DownloadError(f"{self.name}: the server has {total} bytes, {size} were expected; report it")
            blocks = read_blocks(response, self.name, policy.max_bytes, "download it yourself")
            with explain_disk_errors(self.path.parent):
                if done == 0:
                    self._start(_version_of(response))
                report(done, total)
                with self.path.open("ab") as file:
                    for block in blocks:
                        file.write(block)
                        file.flush()  # so that a process that is killed loses nothing
                        done += len(block)
                        report(done, total)

    def discard(self) -> None:
        """Removes the part, so that the next attempt starts again."""
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        """Moves the whole file to its place."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(path)
        self._note.unlink(missing_ok=True)

    def _read_state(self) -> tuple[int, str]:
        """Returns the number of bytes and their version; (0, "") if the download has to start again."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            note = json.loads(self._note.read_text("utf-8"))
            if note["origin"] == self._origin and note["version"]:
                return self.path.stat().st_size, str(note["version"])
        return 0, ""

    def _start(self, version: str) -> None:
        self.path.write_bytes(b"")
        self._note.write_text(json.dumps({"origin": self._origin, "version": version}), "utf-8")


def _version_of(response: httpx2.Response) -> str:
    """Returns what tells this version of the file from another; a weak ETag does not."""
    tag: str = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else str(response.headers.get("Last-Modified", ""))
