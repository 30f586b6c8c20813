"""The user's cache of models: one folder for each model, which one process makes and which appears when it is whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import filelock
import platformdirs

from ecapa_jax.errors import DownloadError, one_line

PATIENCE = 3600.0
"""Seconds to wait for another process; over a slow connection a model takes an hour."""

_SAY_AFTER = 2.0


def default_folder() -> Path:
    """Returns the folder of everything ecapa-jax keeps; on Linux it is in `$XDG_CACHE_HOME` or `~/.cache`."""
    return Path(platformdirs.user_cache_dir("ecapa-jax"))


@contextlib.contextmanager
def lock_folder(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Holds the lock on `folder`, so that no other process makes it at the same time.

    The lock of a killed process is free at once. Its unfinished work (`.NAME.partial-*` beside the folder, as
    `bundle.bundle` names it) is removed here, because nobody else can be writing it now.

    Raises:
      DownloadError: the cache can't be written, or another process holds the lock too long; the message names it.
    """
    owner = folder.with_name(f"{folder.name}.owner.json")
    with explain_cache_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.with_name(f"{folder.name}.lock"))
        _acquire(lock, owner, folder, patience)
    try:
        for left in folder.parent.glob(f".{folder.name}.partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):  # only a process that waits reads it
            note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            owner.write_text(json.dumps(note), "utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: filelock.BaseFileLock, owner: Path, folder: Path, patience: float) -> None:
    try:
        try:
            lock.acquire(timeout=min(_SAY_AFTER, patience))
        except filelock.Timeout:
            warnings.warn(f"waiting for {_name_owner(owner)}, which is making {folder.name}", stacklevel=2)
            lock.acquire(timeout=max(0.0, patience - _SAY_AFTER))
    except filelock.Timeout as error:
        raise DownloadError(
            f"{folder} is still being made by {_name_owner(owner)}, after {patience:g} s: wait for it, or end it"
        ) from error


def _name_owner(owner: Path) -> str:
    try:
        note = json.loads(owner.read_text("utf-8"))
        return f"process {note['pid']} on {note['host']} (for {time.time() - note['since']:.0f} s)"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


@contextlib.contextmanager
def explain_disk_errors(place: Path | str, remedy: str = "") -> Iterator[None]:
    """Turns an error of the system into one line: most often the disk is full or a right is missing."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not from the system, but a DownloadError, or gzip's for damaged content
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = remedy or ("make room and run again to continue" if full else "choose another folder")
        raise DownloadError(f"{place} can't be written: {error.strerror or one_line(error)}; {remedy}") from error


def explain_cache_errors(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Does the same for a folder of the cache."""
    remedy = "pass cache_dir, or set XDG_CACHE_HOME to a folder with room"
    return explain_disk_errors(f"the cache {folder}", remedy)
