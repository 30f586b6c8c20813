"""Reads and writes RTTM and UEM, the file formats of turns and of scored parts; malformed files are refused.

Reference: NIST 2009, "The 2009 (RT-09) Rich Transcription Meeting Recognition Evaluation Plan", appendix A.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ecapa_jax.diarization.turns import Turn
from ecapa_jax.errors import DiarizationError

_OTHER_TYPES = {
    "SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP", "SU", "CB",
    "A/P", "SPKR-INFO",
}  # fmt: skip
_RTTM_FIELDS = (9, 10)
_TOLERANCE = 1e-6


def read_rttm(path: str | os.PathLike[str]) -> dict[str, list[Turn]]:
    """Reads the turns of each recording.

    Args:
      path: lines `SPEAKER recording channel start duration <NA> <NA> speaker <NA> <NA>`; lines of RTTM's other types,
        empty lines and comments (`;;`) are skipped.

    Returns:
      The turns of each recording in order of time; recordings in the order of the file.

    Raises:
      DiarizationError: a field is missing or not a number, a turn is empty, negative or listed twice, or two turns of
        one speaker overlap. The message names the line.
    """
    found: dict[str, list[tuple[Turn, int]]] = {}
    for number, line in _read_lines(path):
        where = f"{path}, line {number}"
        fields = line.split()
        if fields[0] in _OTHER_TYPES:
            continue
        if fields[0] != "SPEAKER":
            raise DiarizationError(f"{where}: begins with {fields[0][:40]!r}; a turn begins with SPEAKER")
        if len(fields) not in _RTTM_FIELDS:
            raise DiarizationError(f"{where}: has {len(fields)} fields; SPEAKER lines have 10 (names without spaces)")
        start, duration = _parse_seconds(fields[3], "start", where), _parse_seconds(fields[4], "duration", where)
        if duration == 0:
            raise DiarizationError(f"{where}: the turn lasts 0 seconds; leave it out")
        found.setdefault(fields[1], []).append((Turn(start, start + duration, fields[7]), number))
    for turns in found.values():
        _check_overlap(turns, path)
    return {name: sorted(turn for turn, _ in turns) for name, turns in found.items()}


def _check_overlap(turns: list[tuple[Turn, int]], path: str | os.PathLike[str]) -> None:
    last: dict[str, tuple[Turn, int]] = {}
    for turn, number in sorted(turns):
        earlier = last.get(turn.speaker)
        if earlier is not None and turn.start < earlier[0].end - _TOLERANCE:
            raise DiarizationError(
                f"{path}, line {number}: {turn.speaker}'s turn from {turn.start:g} s begins before the one of line "
                f"{earlier[1]} ends, at {earlier[0].end:g} s; one speaker can't overlap with itself: join the two"
            )
        last[turn.speaker] = turn, number


def write_rttm(path: str | os.PathLike[str], recording: str, turns: Iterable[Turn]) -> None:
    """Writes the turns of one recording."""
    Path(path).write_text(rttm_text(recording, turns), encoding="utf-8")


def rttm_text(recording: str, turns: Iterable[Turn]) -> str:
    """Returns the lines of an RTTM file. Spaces in names become underscores, because a field can't contain spaces."""
    name = _format_field(recording)
    return "".join(
        f"SPEAKER {name} 1 {turn.start:.3f} {turn.end - turn.start:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
        for turn, speaker in ((turn, _format_field(turn.speaker)) for turn in turns)
    )


def _format_field(text: str) -> str:
    return re.sub(r"\s", "_", text) or "_"


def read_uem(path: str | os.PathLike[str]) -> dict[str, list[tuple[float, float]]]:
    """Reads the parts of each recording that are scored.

    Args:
      path: lines `recording channel start end`.

    Raises:
      DiarizationError: a field is missing or not a number, or a part ends before it begins. The message names the line.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for number, line in _read_lines(path):
        where = f"{path}, line {number}"
        fields = line.split()
        if len(fields) != 4:
            raise DiarizationError(f"{where}: has {len(fields)} fields; a UEM line is: recording channel start end")
        start, end = _parse_seconds(fields[2], "start", where), _parse_seconds(fields[3], "end", where)
        if end <= start:
            raise DiarizationError(f"{where}: the part ends at {end:g} s and begins at {start:g} s; swap or drop it")
        found.setdefault(fields[0], []).append((start, end))
    return found


def _read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yields the lines that are neither empty nor comments, with their numbers."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DiarizationError(f"{path}: is not UTF-8 text; give an RTTM or UEM file") from error
    except OSError as error:
        raise DiarizationError(f"{path}: can't be read ({error.strerror}); check the path") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith(";;"):
            yield number, line


def _parse_seconds(text: str, what: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DiarizationError(f"{where}: the {what} is {text[:40]!r}; it must be a number of seconds")
    if value < 0:
        raise DiarizationError(f"{where}: the {what} is {value:g} s; it can't be negative")
    return value
