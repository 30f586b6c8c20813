"""Layouts of speech collections: speaker folders (VoxCeleb's tree is one), Kaldi's lists, CSV tables."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ecapa_jax.errors import TrainingError

Layout = Literal["auto", "folders", "kaldi", "csv"]

SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".mp4", ".aac", ".aiff", ".au"}

COLUMNS = {
    "id": ("ID", "id", "utt", "utterance"),
    "path": ("path", "wav", "file"),
    "speaker": ("spk", "spk_id", "speaker"),
    "start": ("start",),
    "stop": ("stop",),
}
"""Names of columns: 3D-Speaker's (ID, path, start, stop, spk) and SpeechBrain's (ID, wav, start, stop, spk_id)."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """An utterance as a collection names it.

    Attributes:
      id: unique in the collection.
      path: its file.
      speaker: who speaks.
      start, stop: the part of the file, in seconds; None is from the beginning, or to the end.
    """

    id: str
    path: Path
    speaker: str
    start: float | None = None
    stop: float | None = None


def find_recordings(source: Path, layout: Layout = "auto", *, rate: int = 16000) -> list[Recording]:
    """The utterances of a collection, sorted by id.

    Args:
      source: a folder of speaker folders (anything below `<speaker>/` at any depth), a Kaldi data folder with `wav.scp`
        and `utt2spk`, or a CSV file.
      layout: which of them; `auto` looks.
      rate: Hz, by which a CSV's integer `start` and `stop` are samples.

    Raises:
      TrainingError: it is none of them, or a line of a list is malformed, or an id is there twice.
    """
    if not source.exists():
        raise TrainingError(f"{source}: no such file or folder; check the path")
    found = _reader(source, layout)(source, rate)
    if not found:
        raise TrainingError(f"{source} holds no recording ({', '.join(sorted(SUFFIXES))}) in a folder of its speaker")
    found.sort(key=lambda recording: recording.id)
    for one, other in itertools.pairwise(found):
        if one.id == other.id:
            raise TrainingError(f"{source}: the id {one.id} is there twice ({one.path}, {other.path})")
    return found


def _reader(source: Path, layout: Layout) -> Callable[[Path, int], list[Recording]]:
    if layout == "auto":
        layout = "csv" if source.is_file() else "kaldi" if (source / "wav.scp").is_file() else "folders"
    return {"folders": _folders, "kaldi": _kaldi, "csv": _csv}[layout]


def _folders(source: Path, rate: int) -> list[Recording]:
    """The first folder below `source` is the speaker: `id10001/video/00001.wav`, `speaker/utterance.flac`."""
    paths = (path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    placed = ((path, path.relative_to(source)) for path in paths)
    return [Recording(str(below), path, below.parts[0]) for path, below in placed if len(below.parts) > 1]


def _kaldi(source: Path, rate: int) -> list[Recording]:
    speakers = dict(_pairs(source / "utt2spk"))
    recordings = []
    for name, path in _pairs(source / "wav.scp"):
        if path.endswith("|"):
            raise TrainingError(
                f"{source / 'wav.scp'}: {name} is a command, which is not run: write its output to a file"
            )
        if name not in speakers:
            raise TrainingError(f"{source / 'utt2spk'} gives no speaker of {name}")
        recordings.append(Recording(name, source / path, speakers[name]))
    return recordings


def _pairs(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} can't be read ({error})") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            parts = line.split(maxsplit=1)
            if len(parts) != 2:
                raise TrainingError(f"{path}:{number} is not `id value`: {line[:60]!r}")
            pairs.append((parts[0], parts[1].strip()))
    return pairs


def _csv(source: Path, rate: int) -> list[Recording]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, dialect="excel-tab" if source.suffix == ".tsv" else "excel")
            names = {key: _column(source, list(reader.fieldnames or ()), key) for key in COLUMNS}
            return [_row(source, number, row, names, rate) for number, row in enumerate(reader, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"{source} can't be read ({error})") from error


def _column(source: Path, header: list[str] | tuple[str, ...], key: str) -> str | None:
    for name in COLUMNS[key]:
        if name in header:
            return name
    if key in ("path", "speaker"):
        raise TrainingError(f"{source} has no column for the {key}: name one of {', '.join(COLUMNS[key])}")
    return None


def _row(source: Path, number: int, row: dict[str, str], names: dict[str, str | None], rate: int) -> Recording:
    values = {key: (row.get(name) or "").strip() if name else "" for key, name in names.items()}
    if not values["path"] or not values["speaker"]:
        raise TrainingError(f"{source}:{number} lacks a path or a speaker")
    times = {}
    for key in ("start", "stop"):
        text = values[key]
        if text and not re.fullmatch(r"\d+(\.\d+)?", text):
            raise TrainingError(f"{source}:{number}: {key} is {text!r}, not a number")
        # SpeechBrain counts samples, 3D-Speaker seconds with a decimal point.
        times[key] = None if not text else float(text) if "." in text else int(text) / rate
    path = source.parent / values["path"]
    return Recording(values["id"] or f"{values['path']}:{number}", path, values["speaker"], **times)
