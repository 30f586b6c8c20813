"""Writes outputs whole or not at all, even if the process is killed or another process writes the same output.

An output is written to a temporary sibling, `.NAME.partial-*`, which is renamed when it is complete. The writer holds a
lock on the sibling, which the kernel releases when the writer dies. So the next writer of the same output can tell the
siblings of killed writers, which it removes, from those of living writers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ecapa_jax.errors import EcapaError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL, OLD = "partial", "old"
ANYTHING: Final = "anything"
"""Passed instead of an identity: the output may be replaced, whatever it is."""

_LONGEST_NAME = 160  # bytes; file systems allow 255, and the prefix and suffix of a sibling need some of them
_STALE_SECONDS = 86_400.0  # age at which a sibling counts as dead on file systems without locks

Identity = tuple[int, int, int] | None
"""Identifies the file or folder at a path; None if there is none. It changes when another one takes its place."""


def identity(path: Path) -> Identity:
    """Returns the identity of the file or folder at a path now, to be compared later."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


@contextlib.contextmanager
def replacing_file(
    path: Path, *, over: Identity | str = ANYTHING, error: type[EcapaError] = EcapaError, sync: bool = False
) -> Iterator[Path]:
    """Yields an empty temporary sibling, which is renamed to `path` if the body succeeds and otherwise removed.

    Args:
      path: the file to write. Its folder must exist.
      over: the `identity` of the path when the command began. If it differs at the end, another command has written
        the file, which then stays.
      error: type of the exception to raise.
      sync: whether to flush file and folder to the disk before returning, so that they survive a power cut.

    Raises:
      EcapaError: (`error`) the file can't be written, or another command has written it meanwhile.
    """
    with _explain_errors(path, error), _make_partial(path, folder=False) as temporary:
        _check_unchanged(path, over, error)
        yield temporary
        if sync:
            _sync(temporary)
        with _lock_folder(path.parent):
            _check_unchanged(path, over, error)
            temporary.replace(path)
        if sync:
            _sync(path.parent)


@contextlib.contextmanager
def replacing_folder(
    path: Path, *, over: Identity | str = ANYTHING, error: type[EcapaError] = EcapaError
) -> Iterator[Path]:
    """Does for a folder what `replacing_file` does for a file; an old folder stays until the new one is complete.

    Raises:
      EcapaError: (`error`) the folder can't be written, or another command has written it meanwhile.
    """
    with _explain_errors(path, error), _make_partial(path, folder=True) as temporary:
        _check_unchanged(path, over, error)
        yield temporary
        with _lock_folder(path.parent):
            _check_unchanged(path, over, error)
            _swap(temporary, path)


def write_whole(path: Path, write: Callable[[Path], Any], *, over: Identity | str = ANYTHING) -> None:
    """Calls `write(temporary path)` and renames the result to `path`; leaves nothing behind on failure.

    Raises:
      EcapaError: the file can't be written, or another command has written it meanwhile.
    """
    with replacing_file(path, over=over) as temporary:
        write(temporary)


@contextlib.contextmanager
def claimed(folder: Path, error: type[EcapaError] = EcapaError) -> Iterator[None]:
    """Keeps other commands from writing into a folder while the body runs; the folder must exist.

    Raises:
      EcapaError: (`error`) another command is writing into it.
    """
    import filelock

    place = folder / ".lock"
    try:
        lock = filelock.FileLock(place, timeout=0).acquire()
    except filelock.Timeout as timeout:
        raise error(f"{folder} is in use by another command; wait for it, or choose another output") from timeout
    except OSError as failure:
        raise error(f"{folder} can't be written: {failure.strerror or failure}") from failure
    with lock:
        yield
        with contextlib.suppress(OSError):  # nobody waits for the lock: commands that did not get it have ended
            place.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explain_errors(path: Path, error: type[EcapaError]) -> Iterator[None]:
    try:
        yield
    except EcapaError:
        raise
    except OSError as failure:
        where = f" ({path.parent})" if isinstance(failure, PermissionError) else ""
        raise error(f"{path} can't be written: {failure.strerror or failure}{where}") from failure


def _check_unchanged(path: Path, over: Identity | str, error: type[EcapaError]) -> None:
    if over != ANYTHING and identity(path) != over:
        raise error(
            f"another command has written {path} meanwhile, and it was not replaced: choose another output, or run "
            "this command again"
        )


@contextlib.contextmanager
def _make_partial(path: Path, *, folder: bool) -> Iterator[Path]:
    """Makes and locks a temporary sibling, after removing what killed writers of the same output left."""
    temporary = path.with_name(f".{_stem(path)}.{PARTIAL}-{secrets.token_hex(6)}{'' if folder else path.suffix[-20:]}")
    handle = None
    try:
        with _lock_folder(path.parent):
            remove_leftovers(path)
            if folder:
                temporary.mkdir()
            else:
                temporary.touch(exist_ok=False)
            handle = _lock(temporary)
        yield temporary
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Removes what killed writers of `path` left beside it; puts back an old output that one of them moved aside."""
    prefixes = {kind: f".{_stem(path)}.{kind}-" for kind in (PARTIAL, OLD)}
    for entry in list(os.scandir(path.absolute().parent)):
        found = Path(entry.path)
        if entry.name.startswith(prefixes[OLD]) and not os.path.lexists(path):
            found.rename(path)
        elif entry.name.startswith(prefixes[OLD]) or (entry.name.startswith(prefixes[PARTIAL]) and _is_dead(found)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(found, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    found.unlink()


def _swap(temporary: Path, path: Path) -> None:
    """Replaces the old folder by the new one, and restores the old one if that fails."""
    if not os.path.lexists(path):
        temporary.rename(path)
        return
    old = path.with_name(f".{_stem(path)}.{OLD}-{secrets.token_hex(6)}")
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _stem(path: Path) -> str:
    name = os.fsencode(path.name)
    return path.name if len(name) <= _LONGEST_NAME else hashlib.sha256(name).hexdigest()[:32]


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Locks a folder, so that only one writer at a time makes, moves or removes names in it; others wait a moment."""
    handle = None
    if fcntl is not None:
        with contextlib.suppress(OSError):  # the file system has no locks, or the folder can't be read
            handle = os.open(folder.absolute(), os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(path: Path) -> int | None:
    """Locks a temporary file or folder until its handle is closed; the kernel closes the handle of a killed process."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _is_dead(path: Path) -> bool:
    """Whether no living process is writing a temporary file or folder."""
    try:
        if fcntl is None:
            return time.time() - path.lstat().st_mtime > _STALE_SECONDS
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - path.lstat().st_mtime > _STALE_SECONDS
    finally:
        os.close(handle)
    return True
