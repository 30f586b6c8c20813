"""Finds the utterances of a speech collection in speaker folders (such as VoxCeleb), Kaldi's lists, tables or JSON."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ecapa_jax.errors import TrainingError
from ecapa_jax.files.entries import COLUMNS, Entry, join_root, numbered_lines, read_json, read_scp, read_table
from ecapa_jax.files.recordings import AUDIO_SUFFIXES, find_audio

Layout = Literal["auto", "folders", "kaldi", "csv"]

_JSON = {".json", ".jsonl", ".ndjson", ".list"}


@dataclasses.dataclass(frozen=True)
class Utterance:
    """An utterance of a collection.

    Attributes:
      id: identifier, unique in the collection.
      path: the file.
      speaker: name of the speaker.
      start, stop: the part of the file, in seconds; None is the beginning or the end of the file.
    """

    id: str
    path: Path
    speaker: str
    start: float | None = None
    stop: float | None = None


def find_utterances(source: Path, layout: Layout = "auto", *, rate: int = 16000) -> list[Utterance]:
    """Finds the utterances of a collection, sorted by id.

    Args:
      source: a folder of speaker folders (files below `<speaker>/` at any depth), a Kaldi data folder with `wav.scp`,
        `utt2spk` and optionally `segments`, a CSV or TSV file, or a list of JSON objects in the format of NeMo,
        WeSpeaker or SpeechBrain.
      layout: layout of the source; `auto` detects it.
      rate: sample rate in Hz of `start` and `stop` in a table, if they are integers.

    Raises:
      TrainingError: the source has no known layout, a line of a list is malformed, or an id is not unique.
    """
    if not source.exists():
        raise TrainingError(f"{source}: no such file or folder; check the path")
    found = _choose_reader(source, layout)(source, rate)
    if not found:
        kinds = ", ".join(sorted(AUDIO_SUFFIXES))
        raise TrainingError(f"{source} holds no recording ({kinds}) in a folder of its speaker")
    found.sort(key=lambda recording: recording.id)
    for one, other in itertools.pairwise(found):
        if one.id == other.id:
            raise TrainingError(f"{source}: the id {one.id} is used twice ({one.path}, {other.path})")
    return found


def _choose_reader(source: Path, layout: Layout) -> Callable[[Path, int], list[Utterance]]:
    if layout == "auto":
        layout = "csv" if source.is_file() else "kaldi" if (source / "wav.scp").is_file() else "folders"
    return {"folders": _read_folders, "kaldi": _read_kaldi, "csv": _read_list}[layout]


def _read_folders(source: Path, rate: int) -> list[Utterance]:
    """Takes the first folder below `source` as the speaker: `id10001/video/00001.wav`, `speaker/utterance.flac`."""
    placed = ((path, path.relative_to(source)) for path in find_audio(source))
    return [Utterance(str(below), path, below.parts[0]) for path, below in placed if len(below.parts) > 1]


def _read_kaldi(source: Path, rate: int) -> list[Utterance]:
    speakers = {fields[0]: fields[1] for fields in _read_fields(source / "utt2spk", 2)}
    try:
        entries = list(read_scp(source / "wav.scp", TrainingError))
    except OSError as error:
        raise TrainingError(f"{source / 'wav.scp'} can't be read ({error})") from error
    if (source / "segments").is_file():
        paths = {entry.id: entry.path for entry in entries}
        return [_parse_segment(source, fields, paths, speakers) for fields in _read_fields(source / "segments", 4)]
    recordings = []
    for entry in entries:
        if entry.id not in speakers:
            raise TrainingError(f"{source / 'utt2spk'} gives no speaker of {entry.id}")
        recordings.append(Utterance(str(entry.id), source / entry.path, speakers[entry.id]))
    return recordings


def _parse_segment(
    source: Path, fields: list[str], paths: dict[str | None, str], speakers: dict[str, str]
) -> Utterance:
    """Makes an utterance from a line of Kaldi's `segments`, which names a part of a recording."""
    name, recording, *times = fields
    if recording not in paths:
        raise TrainingError(f"{source / 'wav.scp'} has no recording {recording}, which segments names for {name}")
    if name not in speakers:
        raise TrainingError(f"{source / 'utt2spk'} gives no speaker of {name}")
    try:
        start, stop = map(float, times)
    except ValueError as error:
        raise TrainingError(f"{source / 'segments'}: {name} has times {' '.join(times)}, not two numbers") from error
    end = None if stop == -1 else stop  # Kaldi: up to the recording's end
    if not start >= 0 or (end is not None and not end > start):
        raise TrainingError(f"{source / 'segments'}: {name} is empty, from {start:g} to {stop:g} s")
    return Utterance(name, source / paths[recording], speakers[name], start, end)


def _read_fields(path: Path, n_fields: int) -> list[list[str]]:
    """Reads the fields of each line of a Kaldi file, without a byte order mark."""
    try:
        found = [(number, line.split(maxsplit=n_fields - 1)) for number, line in numbered_lines(path, TrainingError)]
    except OSError as error:
        raise TrainingError(f"{path} can't be read ({error})") from error
    for number, fields in found:
        if len(fields) != n_fields:
            form = "id value" if n_fields == 2 else "id recording start stop"
            raise TrainingError(f"{path}:{number} is not `{form}`: {' '.join(fields)[:60]!r}")
    return [fields for _, fields in found]


def _read_list(source: Path, rate: int) -> list[Utterance]:
    """Reads a table, or JSON objects. An integer start or stop is a sample; one with a decimal point is in seconds."""
    is_json = source.suffix.lower() in _JSON
    try:
        entries = list(read_json(source, TrainingError) if is_json else read_table(source, TrainingError))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{source} can't be read ({error})") from error
    return [_make_utterance(source, entry, rate) for entry in entries]


def _make_utterance(source: Path, entry: Entry, rate: int) -> Utterance:
    if entry.speaker is None:
        names = ", ".join(COLUMNS["speaker"])
        raise TrainingError(f"{entry.where}: there is no column for the speaker: name one of {names}")
    factor = rate if entry.in_samples else 1
    start, stop = (None if value is None else value / factor for value in (entry.start, entry.stop))
    identity = entry.id or f"{entry.path}:{entry.where.rpartition(':')[2]}"
    path = Path(join_root(source.parent, entry.path.strip()))
    return Utterance(identity.strip(), path, entry.speaker.strip(), start, stop)
