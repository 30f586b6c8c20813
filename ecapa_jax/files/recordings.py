"""Finds the recordings in a folder: which files count as recordings, and how the tree is walked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_WAVEFORMS = (".wav", ".flac", ".aif", ".aiff", ".aifc", ".au", ".snd", ".sph", ".nist", ".w64", ".rf64", ".caf")
_CODECS = (".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".3gp", ".mka")

AUDIO_SUFFIXES = frozenset(_WAVEFORMS + _CODECS)
"""Suffixes of the files that count as recordings in a folder."""


def find_audio(folder: Path) -> list[Path]:
    """Returns the recordings below a folder, sorted. Links to folders are followed.

    Below each folder of the first level, which is that of a speaker, every folder is visited only once, so that loops
    of links end. Broken links and everything that is not a regular file are left out.
    """
    root = _identity(folder)
    found: list[Path] = []
    for entry in _list_folder(folder):
        found += _walk(folder / entry.name, entry, {root})
    return sorted(path for path in found if path.suffix.lower() in AUDIO_SUFFIXES)


def _walk(path: Path, entry: os.DirEntry[str], seen: set[tuple[int, int] | None]) -> Iterator[Path]:
    """Yields the regular files at or below an entry, skips the folders in `seen`, and adds visited folders to it."""
    left = [(path, entry)]
    while left:
        path, entry = left.pop()
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself
            continue
        if is_file:
            yield path
        elif is_folder and (here := _identity(path)) not in seen:
            seen.add(here)
            left += [(path / below.name, below) for below in _list_folder(path)]


def _list_folder(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # the folder can't be entered, or has been removed
        return []


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def why_no_recording(path: str | os.PathLike[str]) -> str:
    """Says why a path must not be opened as a recording, because reading it may never end; "" if it may be opened."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""  # the reader will say why the path can't be read
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(mode))
    return "" if kind is None else f"{os.fspath(path)}: is {kind}, not a file; write the recording to a file first"
