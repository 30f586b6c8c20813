"""One large file over http and https: resumed, retried, checked, and in place only when whole."""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import errno
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ecapa_jax.errors import DownloadError, one_line, without_secrets
from ecapa_jax.hub.http import explained, open_url

Report = Callable[[int, int | None], None]
"""Called with the bytes that are there, and all there will be where that is known."""

_BLOCK = 1 << 18
_PASSING = (429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """How patient a download is; times in seconds.

    Attributes:
      timeout: for the connection, and for each further piece of data.
      attempts: how often a passing fault is tried, the first included.
      pause: before the second attempt; doubled for each further one.
      longest_pause: a server that asks for more (Retry-After) is not waited for.
      max_bytes: no speaker model is larger.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0
    longest_pause: float = 60.0
    max_bytes: int = 4_000_000_000


class Passing(Exception):
    """A fault that another attempt may not meet; `after` seconds are asked for by the server."""

    def __init__(self, error: DownloadError, after: float = 0.0):
        super().__init__(str(error))
        self.error, self.after = error, after


@dataclasses.dataclass(frozen=True)
class File:
    """A downloaded file: bytes, and the sha256 of all of them."""

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

    What came before a fault, or before the process was killed, stays in `.NAME.partial` beside it. The next call goes
    on from there, if the server still has the same version (ETag or Last-Modified), else from the beginning.

    Args:
      url: http or https.
      path: the file to make, in a folder that exists.
      size: bytes, where known.
      sha256: in hexadecimal, where known.
      policy: see there.
      report: for a progress bar.

    Raises:
      DownloadError: refused, unreachable, missing, cut short each time, of another size or sha256, too large, or there
        is no room on the disk. One line, without the URL's query.
    """
    policy = policy or Policy()
    part, name = _Part(path, url), without_secrets(url)
    retried(policy, lambda: _transfer(url, name, part, size, policy, report))
    with _disk(path):
        file = described(part.path)
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


def described(path: Path) -> File:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        return File(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def retried(policy: Policy, action: Callable[[], T]) -> T:
    """Calls `action` again while it raises `Passing`, with growing pauses, or those that the server asks for.

    Raises:
      DownloadError: the last fault, when no attempt is left or the server asks for a longer pause than allowed.
    """
    for attempt in range(policy.attempts):
        try:
            return action()
        except Passing as fault:
            if fault.after > policy.longest_pause:
                raise DownloadError(f"{fault.error}; it asks to wait {fault.after:.0f} s") from fault
            if attempt + 1 == policy.attempts:
                raise DownloadError(f"{fault.error} (tried {policy.attempts} times); run again to go on") from fault
            time.sleep(max(policy.pause * 2**attempt, fault.after))
    raise AssertionError("attempts is at least 1")


def get_json(url: str, policy: Policy) -> Any:
    """A small JSON document, retried as files are.

    Raises:
      DownloadError: as `download`; also if it is no JSON.
    """
    name = without_secrets(url)

    def get() -> bytes:
        with _explained(name, policy), open_url(url, timeout=policy.timeout) as response:
            body = response.read(20_000_001)
        if len(body) > 20_000_000:
            raise DownloadError(f"{name}: the answer is longer than any listing of files")
        return body

    try:
        return json.loads(retried(policy, get))
    except (ValueError, RecursionError) as error:
        raise DownloadError(f"{name}: the answer is no JSON; a proxy or a log-in page may have given it") from error


class _Part:
    """What is there so far, and which version it is of."""

    def __init__(self, path: Path, url: str):
        self.path = path.with_name(f".{path.name}.partial")
        self.note = path.with_name(f".{path.name}.partial.json")
        self.origin = hashlib.sha256(url.encode()).hexdigest()  # not the URL, which may hold keys

    def state(self) -> tuple[int, str]:
        """Bytes that are there, and what tells their version; (0, "") where there is nothing to go on from."""
        try:
            note = json.loads(self.note.read_text("utf-8"))
            if note["origin"] == self.origin and note["version"]:
                return self.path.stat().st_size, str(note["version"])
        except (OSError, ValueError, LookupError, TypeError):
            pass
        return 0, ""

    def begin(self, version: str) -> None:
        """An empty file of this version."""
        self.path.write_bytes(b"")
        self.note.write_text(json.dumps({"origin": self.origin, "version": version}), "utf-8")

    def discard(self) -> None:
        """Nothing to go on from."""
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        """The whole file in its place."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(path)
        self.note.unlink(missing_ok=True)


def _transfer(url: str, name: str, part: _Part, size: int | None, policy: Policy, report: Report) -> None:
    """One attempt; returns when the server has sent all."""
    offset, version = part.state()
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": version}
    try:
        with _explained(name, policy):
            response = open_url(url, timeout=policy.timeout, headers=headers)
    except _OutOfRange as told:
        if told.total == offset:  # all was there already; the process was killed before it said so
            return
        part.discard()
        raise Passing(DownloadError(f"{name}: the server has no bytes after {offset}")) from None
    with response:
        start, total = _placed(response, offset, version)
        if start is None:
            part.discard()
            raise Passing(DownloadError(f"{name}: the server sent another part than asked for"))
        if size is not None and total not in (None, size):
            raise DownloadError(f"{name}: the server has {total} bytes, {size} were expected; report it")
        if max(total or 0, start) > policy.max_bytes:
            raise DownloadError(f"{name}: is larger than {policy.max_bytes / 1e6:g} MB; download it yourself")
        if start == 0:
            with _disk(part.path):
                part.begin(_version(response))
        _append(response, name, part.path, start, total, policy, report)


def _append(
    response: http.client.HTTPResponse,
    name: str,
    path: Path,
    done: int,
    total: int | None,
    policy: Policy,
    report: Report,
) -> None:
    report(done, total)
    with _disk(path), path.open("ab") as file:
        while True:
            with _explained(name, policy):
                block = response.read1(_BLOCK)
            if not block:
                break
            done += len(block)
            if done > policy.max_bytes:
                raise DownloadError(f"{name}: is larger than {policy.max_bytes / 1e6:g} MB; download it yourself")
            file.write(block)
            report(done, total)
    if total is not None and done < total:
        raise Passing(DownloadError(f"{name}: the connection closed after {done} of {total} bytes"))


def _placed(response: http.client.HTTPResponse, offset: int, version: str) -> tuple[int | None, int | None]:
    """Where the answer's bytes belong (None: nowhere), and how many the whole file has (None: unknown)."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0, response.length
    found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != offset or _version(response) not in ("", version):
        return None, None
    return offset, None if found[3] == "*" else int(found[3])


def _version(response: http.client.HTTPResponse) -> str:
    """What tells this version of the file from another; a weak ETag does not."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


class _OutOfRange(Exception):
    """The server has no bytes after those that are there; `total` is how many it has, -1 where it does not tell."""

    def __init__(self, content_range: str):
        self.total = int(content_range.rpartition("/")[2]) if re.fullmatch(r"bytes \*/\d+", content_range) else -1


@contextlib.contextmanager
def _explained(name: str, policy: Policy) -> Iterator[None]:
    """Turns faults of the network into `Passing`, where another attempt may help, else into a DownloadError."""
    try:
        yield
    except DownloadError:
        raise
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            raise _OutOfRange(error.headers.get("Content-Range", "")) from error
        after = _retry_after(error.headers.get("Retry-After", ""))
        told = explained(error, name, policy.timeout)
        if error.code not in _PASSING:
            raise told from error
        busy = f"{name}: the server is busy or faulty ({error.code} {one_line(error.reason)})"
        raise Passing(DownloadError(busy), after) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        told = explained(error, name, policy.timeout)
        # Without a network every attempt fails at once: only what was cut short is worth another.
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError | ConnectionResetError | BrokenPipeError | http.client.IncompleteRead):
            raise Passing(told) from error
        raise told from error


def _retry_after(text: str) -> float:
    """Seconds of a Retry-After header, which has seconds or a date; 0 without or with a broken one."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        raise no_room(error, path) from error


def no_room(error: OSError, path: Path) -> DownloadError:
    """What hinders writing a file: most often a full disk or missing rights."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room and run again to go on" if full else "choose another folder"
    return DownloadError(f"{path.parent} can't be written: {error.strerror or one_line(error)}; {remedy}")
