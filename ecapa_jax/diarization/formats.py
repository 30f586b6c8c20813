"""Writes turns in the formats of other programs: RTTM, JSON, subtitles, labels of Audacity, CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from typing import Any, Literal

from ecapa_jax.diarization.result import Diarization
from ecapa_jax.diarization.rttm import rttm_text
from ecapa_jax.diarization.turns import Turn

Format = Literal["rttm", "json", "srt", "vtt", "audacity", "csv"]

SUFFIXES: dict[Format, str] = {
    "rttm": ".rttm",
    "json": ".json",
    "srt": ".srt",
    "vtt": ".vtt",
    "audacity": ".txt",
    "csv": ".csv",
}


def as_text(result: Diarization, recording: str, kind: Format, *, exclusive: bool = False) -> str:
    """Returns the turns of a recording as text.

    Args:
      result: diarization of the recording.
      recording: name of the recording.
      kind: format of the text, a key of `SUFFIXES`.
      exclusive: whether to write the turns with one speaker at a time.
    """
    turns = result.exclusive if exclusive else result.turns
    if kind == "json":
        return json.dumps(as_dict(result, recording, exclusive=exclusive), ensure_ascii=False, indent=1) + "\n"
    if kind == "rttm":
        return rttm_text(recording, turns)
    return _FORMATTERS[kind](turns)


def as_dict(result: Diarization, recording: str, *, exclusive: bool = False) -> dict[str, Any]:
    """Returns the content of a JSON file: the recording, its speakers and its turns."""
    turns = result.exclusive if exclusive else result.turns
    return {
        "recording": recording,
        "duration": round(result.duration, 3),
        "speakers": [
            {"name": speaker.name, "seconds": speaker.seconds, "score": speaker.score} for speaker in result.speakers
        ],
        "turns": [
            {"start": round(turn.start, 3), "end": round(turn.end, 3), "speaker": turn.speaker} for turn in turns
        ],
    }


def _format_srt(turns: Iterable[Turn]) -> str:
    return "".join(
        f"{number}\n{_format_clock(turn.start, ',')} --> {_format_clock(turn.end, ',')}\n{turn.speaker}\n\n"
        for number, turn in enumerate(turns, 1)
    )


def _format_vtt(turns: Iterable[Turn]) -> str:
    lines = (
        f"{_format_clock(turn.start, '.')} --> {_format_clock(turn.end, '.')}\n<v {name}>{name}\n\n"
        for turn, name in ((turn, _escape(turn.speaker)) for turn in turns)
    )
    return "WEBVTT\n\n" + "".join(lines)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _format_audacity(turns: Iterable[Turn]) -> str:
    return "".join(f"{turn.start:.3f}\t{turn.end:.3f}\t{turn.speaker}\n" for turn in turns)


def _format_csv(turns: Iterable[Turn]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["start", "end", "speaker"])
    writer.writerows([f"{turn.start:.3f}", f"{turn.end:.3f}", turn.speaker] for turn in turns)
    return stream.getvalue()


def _format_clock(seconds: float, point: str) -> str:
    """Formats seconds as `00:01:02,345`."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


_FORMATTERS: dict[str, Callable[[Iterable[Turn]], str]] = {
    "srt": _format_srt,
    "vtt": _format_vtt,
    "audacity": _format_audacity,
    "csv": _format_csv,
}
