"""Reads lists of recordings in the formats of this library and of others; each row becomes an `Entry`.

CSV and TSV       a header: path, id; 3D-Speaker: ID, path, start, stop, spk; SpeechBrain: ID, wav, start, stop, spk_id
JSON lines        NeMo's (audio_filepath, offset, duration, label), WeSpeaker's raw list (key, wav, spk), or path, id
JSON              SpeechBrain's, an object of objects by id; or a list of objects
Kaldi             wav.scp: `id path`
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecapa_jax.errors import EcapaError, one_line
from ecapa_jax.files.tables import column_of, read_delimited

COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "wav", "audio_filepath", "wav_path", "audio_path", "file_path", "filepath", "file"),
    "id": ("id", "ID", "key", "utt", "utterance", "utt_id", "utterance_id"),
    "speaker": ("spk", "spk_id", "speaker", "speaker_id", "client_id", "label"),
    "start": ("start",),
    "stop": ("stop", "end"),
    "channel": ("channel",),
}
"""For each kind of content, the names that its column may have; the first name that is found is used."""

_NEMO = "audio_filepath"
_SHORTEST_SAMPLES = 400
"""25 ms at 16 kHz. A part of fewer samples can't be speech, so whole numbers closer than this must be seconds."""
_DATA_ROOTS = ("{data_root}/", "$data_root/", "{data_folder}/", "$data_folder/")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of a list.

    Attributes:
      where: file and line, for messages.
      path: path of the recording, as it is written in the list.
      id, speaker: identifier and speaker, if the row has them.
      start, stop: the part of the recording; None is the beginning or the end of the recording.
      in_samples: whether `start` and `stop` are samples instead of seconds.
      channel: the name of the channel, if the row has one.
    """

    where: str
    path: str
    id: str | None = None
    speaker: str | None = None
    start: float | None = None
    stop: float | None = None
    in_samples: bool = False
    channel: str | None = None

    @property
    def is_part(self) -> bool:
        """Whether the row names only a part of the recording."""
        return bool(self.start) or self.stop is not None


def read_table(path: Path, error: type[EcapaError], names: Mapping[str, Sequence[str]] = COLUMNS) -> Iterator[Entry]:
    """Reads the rows of a CSV or TSV file, whose suffix says which it is.

    Args:
      path: the file.
      error: type of the exception to raise.
      names: for each kind of content, the names that its column may have.

    Raises:
      EcapaError: (`error`) there is no column for the path, or a row is damaged, has no path, or has a start or stop
        that is not a number.
    """
    rows = read_delimited(path, "\t" if path.suffix.lower() == ".tsv" else ",", error)
    _, header = next(rows, (0, []))
    places = {what: column_of(header, of) for what, of in names.items()}
    if places["path"] is None:
        raise error(
            f"{path}: has no column for the path: the first line must name the columns, one of them 'path'; it is "
            f"{header[:8]}"
        )
    used = [at for at in places.values() if at is not None]
    if twice := [header[at] for at in used if header.count(header[at]) > 1]:
        raise error(f"{path}: its header names the column {twice[0]!r} twice; rename one")
    for number, cells in rows:
        where = f"{path}:{number}"
        values = {what: None if at is None or at >= len(cells) else cells[at] for what, at in places.items()}
        short = "" if len(cells) == len(header) else f" ({len(cells)} cells, the header has {len(header)})"
        given = {what: cell for what, cell in values.items() if places[what] is not None}
        entry = entry_of_row(where, given, error, short)
        if short:
            raise error(f"{where}: has fewer cells than the header{short}: is one missing in the middle?")
        yield entry


def entry_of_row(where: str, values: Mapping[str, str | None], error: type[EcapaError], why: str = "") -> Entry:
    """Makes an entry from a row of a table.

    Args:
      where: file and line, for messages.
      values: the cells of the row: `path`, and `id`, `speaker`, `start` and `stop` if the table has them.
      error: type of the exception to raise.
      why: why a value may be missing, for messages.

    Raises:
      EcapaError: (`error`) a text is missing, or start or stop is not a number.
    """
    for what in ("path", "id", "speaker"):
        value = values.get(what, "")
        if what in values and (value is None or not value.strip()):
            raise error(f"{where}: its {what} is missing{why}; give a text")
    return Entry(
        where,
        str(values["path"]),
        values.get("id"),
        values.get("speaker"),
        *_parse_part(where, values.get("start"), values.get("stop"), error),
        channel=str(values.get("channel") or "").strip() or None,
    )


def _parse_part(
    where: str, start: Any, stop: Any, error: type[EcapaError], unit: str = ""
) -> tuple[float | None, float | None, bool]:
    """Parses start and stop, and decides whether they are samples: whole numbers are, unless they are too close."""
    texts = ["" if value is None else str(value).strip() for value in (start, stop)]
    for name, text in zip(("start", "stop"), texts, strict=True):
        if text and not re.fullmatch(r"\d+(\.\d*)?(e-?\d+)?", text.lower()):
            raise error(f"{where}: {name} is {text!r}, not a number of seconds or samples")
    begin, end = (float(text) if text else None for text in texts)
    if end is not None and end <= (begin or 0):
        raise error(f"{where}: the part from {texts[0] or 0} to {texts[1]} is empty; give a stop after the start")
    whole = all(text.isdecimal() for text in texts if text) and any(texts)
    far = end is None or end - (begin or 0) >= _SHORTEST_SAMPLES
    return begin, end, whole and far if not unit else unit == "samples"


def read_json(path: Path, error: type[EcapaError]) -> Iterator[Entry]:
    """Reads the rows of a JSON lines file; a file with the suffix .json may also be one JSON document.

    Raises:
      EcapaError: (`error`) a line is not JSON, or not an object with a path.
    """
    if path.suffix.lower() != ".json":
        yield from _read_json_lines(path, error)
        return
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    if _is_whole(first) or not first:
        yield from _read_json_lines(path, error)
        return
    try:
        document = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError):
        yield from _read_json_lines(path, error)  # its error names the line
        return
    yield from _parse_document(path, document, error)


def _is_whole(line: str) -> bool:
    """Whether a line is a complete object that describes one recording."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not (isinstance(value, list) or (isinstance(value, dict) and _is_by_id(value)))


def _is_by_id(document: dict[str, Any]) -> bool:
    return bool(document) and all(isinstance(value, dict) and _find_path(value) for value in document.values())


def _find_path(value: Mapping[str, Any]) -> Any:
    return next((value[name] for name in COLUMNS["path"][:-1] if name in value), None)


def _parse_document(path: Path, document: Any, error: type[EcapaError]) -> Iterator[Entry]:
    if isinstance(document, dict) and _is_by_id(document):
        for name, value in document.items():
            yield _parse_object(f"{path}, {name!r}", {"id": name, **value}, error)
        return
    for number, value in enumerate(document if isinstance(document, list) else [document], 1):
        yield _parse_object(f"{path}, row {number}", value, error)


def _read_json_lines(path: Path, error: type[EcapaError]) -> Iterator[Entry]:
    for number, line in numbered_lines(path, error):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as failure:
            raise error(f"{path}:{number}: is not JSON ({one_line(failure)})") from failure
        yield _parse_object(f"{path}:{number}", value, error)


def _parse_object(where: str, value: Any, error: type[EcapaError]) -> Entry:
    """Makes an entry from an object in the format of NeMo, WeSpeaker or SpeechBrain."""
    if not isinstance(value, dict):
        raise error(f'{where}: is not an object; write {{"id": ..., "path": ...}}')
    if value.get("vad") is not None:
        raise error(
            f"{where}: has a list `vad`, which is not supported: write one row for each part, with start and stop"
        )
    found = _find_path(value)
    place = found if isinstance(found, dict) else value  # SpeechBrain: "wav": {"file": ..., "start": ..., "stop": ...}
    path = place.get("file") if isinstance(found, dict) else found
    identity = next((value[name] for name in ("id", "ID", "key", "utt") if name in value), None)
    speaker = next((value[name] for name in COLUMNS["speaker"] if name in value), None)
    start, stop = place.get("start"), place.get("stop", place.get("end") if "start" in place else None)
    unit = ""
    if _NEMO in value and "start" not in value and (value.get("offset") or value.get("duration")):
        start, stop, unit = _parse_nemo_part(where, value.get("offset"), value.get("duration"), error)
    for name, text in (("path", path), ("id", identity)):
        if name == "id" and isinstance(text, int) and not isinstance(text, bool):
            identity = str(text)
        elif (name == "path" or text is not None) and (not isinstance(text, str) or not text):
            raise error(f"{where}: its {name} is {'missing' if text in (None, '') else repr(text)}; give a text")
    path = str(path)
    _check_file(where, path, error)
    known = None if speaker is None else str(speaker)
    channel = str(value.get("channel") or "").strip() or None
    return Entry(where, path, identity, known, *_parse_part(where, start, stop, error, unit), channel=channel)


def _parse_nemo_part(where: str, offset: Any, duration: Any, error: type[EcapaError]) -> tuple[Any, Any, str]:
    """Converts NeMo's `offset` and `duration`, in seconds, to start, stop and their unit."""
    for name, value in (("offset", offset), ("duration", duration)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value) and value >= 0):
            raise error(f"{where}: {name} is {value!r}, not a number of seconds")
    begin = float(offset or 0)
    return f"{begin:.9f}", None if not duration else f"{begin + duration:.9f}", "seconds"


def numbered_lines(path: Path, error: type[EcapaError]) -> Iterator[tuple[int, str]]:
    """Yields number and content of each line that is not empty.

    Raises:
      EcapaError: (`error`) a line is not UTF-8.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                line.encode()
            except UnicodeError as failure:
                raise error(f"{path}:{number}: is not UTF-8; convert the file to it") from failure
            yield number, line.strip("\r\n")


def read_scp(path: Path, error: type[EcapaError]) -> Iterator[Entry]:
    """Reads the rows of Kaldi's wav.scp.

    Raises:
      EcapaError: (`error`) a line has no path, is a command, or points into an archive.
    """
    for number, line in numbered_lines(path, error):
        where = f"{path}:{number}"
        key, *rest = re.split(r"[ \t]+", line.strip(" \t"), maxsplit=1)
        if not rest:
            raise error(f"{where}: has no path; a line of wav.scp is 'id path'")
        _check_file(where, rest[0], error)
        if rest[0].rpartition(":")[2].isdecimal() and not os.path.exists(rest[0]):
            raise error(f"{where}: points into an archive ({rest[0]}); write its recordings to files and list those")
        yield Entry(where, rest[0], key)


def _check_file(where: str, path: str, error: type[EcapaError]) -> None:
    if path.endswith("|") or path.startswith("|"):
        raise error(
            f"{where}: is a command (a pipe), which is never run; write its output to a file and list that file"
        )


def join_root(root: str | os.PathLike[str], path: str) -> str:
    """Joins a root and a path, unless the path is absolute or an address; SpeechBrain's `{data_root}` is the root."""
    for mark in _DATA_ROOTS:
        path = path.removeprefix(mark)
    return path if "://" in path else os.path.join(root, path)
