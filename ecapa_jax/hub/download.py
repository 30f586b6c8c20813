"""Downloads one large file: resumes, retries, checks, and puts it in place only when it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ecapa_jax.errors import DownloadError, one_line, without_secrets
from ecapa_jax.hub.http import TransientError, declared_bytes, open_url, read_blocks

if TYPE_CHECKING:
    import httpx2

Report = Callable[[int, int | None], None]
"""Called with the number of bytes received so far, and of all bytes if that is known."""

_PARTIAL, _OUT_OF_RANGE = 206, 416
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

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
    part, name = _PartialFile(path, url), without_secrets(url)
    retry(policy, lambda: _attempt(url, name, part, size, policy, report))
    with _explain_disk_errors(path):
        file = describe(part.path)
        if size not in (None, file.size):
            part.discard()
            raise DownloadError(f"{name}: is {file.size} bytes, {size} were expected; try again, or report it")
        if sha256 is not None and file.sha256 != sha256.lower():
            part.discard()
            raise DownloadError(
                f"{name}: its sha256 is {file.sha256}, {sha256} was expected: it is not the file that was published, "
                "or it was damaged on the way; try again"
            )
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
    name = without_secrets(url)

    def get() -> bytes:
        with open_url(url, timeout=policy.timeout) as response:
            return b"".join(read_blocks(response, name, 20_000_000))

    try:
        return json.loads(retry(policy, get))
    except (ValueError, RecursionError) as error:
        raise DownloadError(f"{name}: the answer is no JSON; a proxy or a log-in page may have sent it") from error


class _PartialFile:
    """The part of a file that has arrived, and a note that says of which version it is."""

    def __init__(self, path: Path, url: str):
        self.path = path.with_name(f".{path.name}.partial")
        self.note = path.with_name(f".{path.name}.partial.json")
        self.origin = hashlib.sha256(url.encode()).hexdigest()  # not the URL, which may hold keys

    def read_state(self) -> tuple[int, str]:
        """Returns the number of bytes and their version; (0, "") if the download has to start again."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            note = json.loads(self.note.read_text("utf-8"))
            if note["origin"] == self.origin and note["version"]:
                return self.path.stat().st_size, str(note["version"])
        return 0, ""

    def start(self, version: str) -> None:
        """Makes an empty file of this version."""
        self.path.write_bytes(b"")
        self.note.write_text(json.dumps({"origin": self.origin, "version": version}), "utf-8")

    def discard(self) -> None:
        """Removes the part, so that the next attempt starts again."""
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        """Moves the whole file to its place."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(path)
        self.note.unlink(missing_ok=True)


def _attempt(url: str, name: str, part: _PartialFile, size: int | None, policy: Policy, report: Report) -> None:
    """Makes one attempt, from where the last one ended; returns when the server has sent all."""
    offset, version = part.read_state()
    headers = {"Range": f"bytes={offset}-", "If-Range": version} if offset else {}
    with open_url(url, timeout=policy.timeout, headers=headers, accept=(_OUT_OF_RANGE,)) as response:
        if response.status_code == _OUT_OF_RANGE:
            if response.headers.get("Content-Range") == f"bytes */{offset}":
                return  # all of it is there: the process was killed before it moved the file
            part.discard()
            raise TransientError(f"{name}: the server has no bytes after {offset}")
        start, total = _find_place(response, offset, version)
        if start is None:
            part.discard()
            raise TransientError(f"{name}: the server sent another part than the one asked for")
        if size is not None and total not in (None, size):
            raise DownloadError(f"{name}: the server has {total} bytes, {size} were expected; report it")
        blocks = read_blocks(response, name, policy.max_bytes, start=start, total=total, remedy="download it yourself")
        with _explain_disk_errors(part.path):
            if start == 0:
                part.start(_version_of(response))
            report(start, total)
            with part.path.open("ab") as file:
                for block in blocks:
                    file.write(block)
                    file.flush()  # so that a process that is killed loses nothing
                    start += len(block)
                    report(start, total)


def _find_place(response: httpx2.Response, offset: int, version: str) -> tuple[int | None, int | None]:
    """Returns where the answer's bytes belong (None: nowhere), and how many the whole file has (None: unknown)."""
    if response.status_code != _PARTIAL:
        return 0, declared_bytes(response)
    found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != offset or _version_of(response) not in ("", version):
        return None, None
    return offset, None if found[3] == "*" else int(found[3])


def _version_of(response: httpx2.Response) -> str:
    """Returns what tells this version of the file from another; a weak ETag does not."""
    tag: str = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else str(response.headers.get("Last-Modified", ""))


@contextlib.contextmanager
def _explain_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        raise disk_error(error, path.parent) from error


def disk_error(error: OSError, folder: Path) -> DownloadError:
    """Returns the error for a folder that can't be written: most often the disk is full or a right is missing."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room and run again to continue" if full else "choose another folder"
    return DownloadError(f"{folder} can't be written: {error.strerror or one_line(error)}; {remedy}")
