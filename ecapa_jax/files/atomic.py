"""Outputs that are there whole or not at all, whoever is killed and whoever else writes.

An output is written to a temporary sibling, `.NAME.partial-*`, and renamed when it is whole. The kernel locks that
sibling for as long as its writer lives, so that the next writer of the same output can tell what a killed one left
from what another is still writing: the former it removes.
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
"""In place of an identity: the output may be replaced whatever stands there."""

_LONGEST_NAME = 160  # bytes; file systems take 255, of which the rest is for what comes around the name
_STALE_SECONDS = 86_400.0  # where there are no locks

Identity = tuple[int, int, int] | None
"""What stands at a path; None where nothing does. It changes when another file or folder takes its place."""


def identity(path: Path) -> Identity:
    """What stands at a path now, to be compared later."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


@contextlib.contextmanager
def replacing_file(
    path: Path, *, over: Identity | str = ANYTHING, error: type[EcapaError] = EcapaError, sync: bool = False
) -> Iterator[Path]:
    """An empty temporary sibling to write to, which becomes `path` if the body succeeds and else leaves nothing.

    Args:
      path: the file. Its folder must be there.
      over: what stood there when the command began (`identity`). If something else does at the end, another command
        has written it: its file stays.
      error: the type of what is raised.
      sync: have file and folder on the disk before returning, so that they outlive a power cut.

    Raises:
      EcapaError: (`error`) it can't be written, or another command was faster.
    """
    with _told(path, error), _partial(path, folder=False) as temporary:
        _check_same(path, over, error)
        yield temporary
        if sync:
            _sync(temporary)
        with _alone(path.parent):
            _check_same(path, over, error)
            temporary.replace(path)
        if sync:
            _sync(path.parent)


@contextlib.contextmanager
def replacing_folder(
    path: Path, *, over: Identity | str = ANYTHING, error: type[EcapaError] = EcapaError
) -> Iterator[Path]:
    """As `replacing_file`, for a folder: an old one stays until the new one is whole.

    Raises:
      EcapaError: (`error`) it can't be written, or another command was faster.
    """
    with _told(path, error), _partial(path, folder=True) as temporary:
        _check_same(path, over, error)
        yield temporary
        with _alone(path.parent):
            _check_same(path, over, error)
            _swap(temporary, path)


def write_whole(path: Path, write: Callable[[Path], Any], *, over: Identity | str = ANYTHING) -> None:
    """Calls `write(temporary path)` and renames the result to `path`; leaves nothing behind on failure.

    Raises:
      EcapaError: it can't be written, or another command was faster.
    """
    with replacing_file(path, over=over) as temporary:
        write(temporary)


@contextlib.contextmanager
def claimed(folder: Path, error: type[EcapaError] = EcapaError) -> Iterator[None]:
    """Keeps other commands from writing into a folder meanwhile; the folder must be there.

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
        with contextlib.suppress(OSError):  # no one waits for it: who did not get it has gone
            place.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _told(path: Path, error: type[EcapaError]) -> Iterator[None]:
    try:
        yield
    except EcapaError:
        raise
    except OSError as failure:
        where = f" ({path.parent})" if isinstance(failure, PermissionError) else ""
        raise error(f"{path} can't be written: {failure.strerror or failure}{where}") from failure


def _check_same(path: Path, over: Identity | str, error: type[EcapaError]) -> None:
    if over != ANYTHING and identity(path) != over:
        raise error(
            f"{path} was written by another command meanwhile, and that one stays: choose another output, or run "
            "this command again"
        )


@contextlib.contextmanager
def _partial(path: Path, *, folder: bool) -> Iterator[Path]:
    """The temporary sibling, locked; what killed writers of the same output left is removed first."""
    temporary = path.with_name(f".{_stem(path)}.{PARTIAL}-{secrets.token_hex(6)}{'' if folder else path.suffix[-20:]}")
    handle = None
    try:
        with _alone(path.parent):
            remove_leftovers(path)
            if folder:
                temporary.mkdir()
            else:
                temporary.touch(exist_ok=False)
            handle = _locked(temporary)
        yield temporary
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Removes what killed writers of `path` left beside it, and puts back what one had just moved aside."""
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
    """Puts the new folder where the old one is, which comes back if that fails."""
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
def _alone(folder: Path) -> Iterator[None]:
    """Only one writer at a time makes, moves or removes names of a folder; others wait, for an instant."""
    handle = None
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks, or a folder that may not be read
            handle = os.open(folder.absolute(), os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _locked(path: Path) -> int | None:
    """Locks a temporary file or folder until its handle is closed, which the kernel does for a killed process."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _is_dead(path: Path) -> bool:
    """Whether no living process writes a temporary file or folder."""
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
