"""Folders of recordings: which files count, and how a tree is walked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_WAVEFORMS = (".wav", ".flac", ".aif", ".aiff", ".aifc", ".au", ".snd", ".sph", ".nist", ".w64", ".rf64", ".caf")
_CODECS = (".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".3gp", ".mka")

AUDIO_SUFFIXES = frozenset(_WAVEFORMS + _CODECS)
"""What counts as a recording in a folder."""


def find_audio(folder: Path) -> list[Path]:
    """The recordings below a folder, sorted. Links to folders are followed; what they lead to is walked once.

    Below each folder of the first level, a speaker's, a folder counts once by whatever way it is reached, so that loops
    of links end. Links that lead nowhere, and what is no regular file, are left out.
    """
    root = _identity(folder)
    found: list[Path] = []
    for entry in _entries(folder):
        found += _below(folder / entry.name, entry, {root})
    return sorted(path for path in found if path.suffix.lower() in AUDIO_SUFFIXES)


def _below(path: Path, entry: os.DirEntry[str], seen: set[tuple[int, int] | None]) -> Iterator[Path]:
    """The regular files at or below an entry, without the folders in `seen`, to which those met are added."""
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
            left += [(path / below.name, below) for below in _entries(path)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # may not be entered, or has gone
        return []


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def why_no_recording(path: str | os.PathLike[str]) -> str:
    """What a path is that must not be opened as a recording, because it may never end; empty where it may be."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""  # whoever reads it says why it can't be
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(mode))
    return "" if kind is None else f"{os.fspath(path)}: is {kind} and no file; write the recording to a file first"
