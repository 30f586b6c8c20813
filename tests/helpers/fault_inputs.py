"""Seeded text inputs of several kinds, like the files of users and other programs, each with its expected result."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

WORDS = [
    "Hello.",
    '"Wait',
    'I come."',
    '5" pipe',
    "it's",
    "a, b",
    "ünï",
    "\u2028next",
    "x\x85y",
    '""',
    '"Fine," he said',
    "",
]
TARGETS = ["1", "target", "tgt", "TGT", "True", "same", "positive", "genuine", "Target"]
NONTARGETS = ["0", "nontarget", "non-target", "non_target", "imp", "imposter", "impostor", "False", "different", "-1"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A file and the expected result of reading it.

    Attributes:
      kind: the kind of input.
      name: the file name.
      text: the content of the file.
      expected: the expected result of the reader.
    """

    kind: str
    name: str
    text: str
    expected: Any


def tab_separated(draw: random.Random) -> Case:
    """Makes a table like those of Common Voice, with arbitrary text between the columns that are read."""
    columns = ["client_id", "path", "sentence", "up_votes", "speaker"]
    draw.shuffle(columns)
    rows = []
    for number in range(draw.randint(2, 6)):
        cells = {name: draw.choice(WORDS) for name in columns} | {
            "path": f"clips/{number}.mp3",
            "speaker": f"s{number % 3}",
        }
        cells["client_id"] = f"c{number}"
        rows.append(cells)
    end = draw.choice(["\n", "\r\n"])
    text = end.join("\t".join(line) for line in [columns, *([row[name] for name in columns] for row in rows)]) + end
    expected = [(row["path"], row["speaker"]) for row in rows]
    return Case("tab-separated", "cv.tsv", draw.choice(["", "\ufeff"]) + text, expected)


def comma_separated(draw: random.Random) -> Case:
    """Makes a CSV file with quoted cells that span several lines."""
    rows = [(f"a,{number}.wav", f"s{number}", draw.choice(WORDS) + "\n" * draw.randint(0, 2)) for number in range(3)]
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    expected = [(path, speaker) for path, speaker, _ in rows]
    return Case("CSV", "list.csv", "\n".join(["path,speaker,sentence", *quoted]) + "\n", expected)


def trial_list(draw: random.Random) -> Case:
    """Makes trials without scores: two names and a label, in any of the usual orders and separators."""
    target, nontarget = draw.choice(TARGETS), draw.choice(NONTARGETS)
    trials = [
        (f"e{number}", f"t{draw.randint(0, 99)}-{number}", number % 2 == 0) for number in range(draw.randint(2, 9))
    ]
    separator = draw.choice([" ", "\t", "  "])
    form = draw.randrange(4)
    lines = []
    for enrol, test, same in trials:
        label = target if same else nontarget
        fields = [[label, enrol, test], [enrol, test, label], [f"{enrol}*{test}", label], [enrol, test, "a", label]][
            form
        ]
        lines.append(separator.join(fields))
    if form == 3:
        header = draw.choice(["modelid\tsegmentid\tside\ttargettype", "model\tsegment\tside\tkey"])
        lines = [header, *("\t".join(line.split()) for line in lines)]
    return Case("trial list", "trials.txt", "\n".join(lines) + "\n", [(*trial, None) for trial in trials])


def score_file(draw: random.Random) -> Case:
    """Makes trials with scores, with the label in the first or last column."""
    target, nontarget = draw.choice(TARGETS), draw.choice(NONTARGETS)
    trials = [
        (f"e{number}.wav", f"t{number}.wav", number % 2 == 0, round(draw.uniform(-0.9, 0.9), 5) + 1e-7)
        for number in range(draw.randint(2, 9))
    ]
    form = draw.randrange(3)
    lines = []
    for enrol, test, same, score in trials:
        label = target if same else nontarget
        lines.append(" ".join([[enrol, test, label, str(score)], [enrol, test, str(score), label],
                               [label, enrol, test, str(score)]][form]))  # fmt: skip
    return Case("score file", "scores.txt", "\n".join(lines) + "\n", trials)


def peer_manifest(draw: random.Random) -> Case:
    """Makes a manifest of NeMo, WeSpeaker, SpeechBrain or 3D-Speaker.

    The expected rows contain path, start and stop in seconds, and speaker.
    """
    rows = []
    for number in range(draw.randint(1, 5)):
        start = draw.choice([0, 1.5, 12.25])
        rows.append((f"/data/{number} é.wav", start, start + draw.choice([2.0, 3.5]), f"spk{number}"))
    return _MANIFESTS[draw.randrange(len(_MANIFESTS))](rows)


def _nemo(rows: list[tuple[str, float, float, str]]) -> Case:
    text = "".join(
        json.dumps({"audio_filepath": path, "offset": start, "duration": stop - start, "label": speaker}) + "\n"
        for path, start, stop, speaker in rows
    )
    return Case("NeMo", "manifest.json", text, rows)


def _wespeaker(rows: list[tuple[str, float, float, str]]) -> Case:
    text = "".join(json.dumps({"key": f"k{n}", "wav": row[0], "spk": row[3]}) + "\n" for n, row in enumerate(rows))
    return Case("WeSpeaker", "raw.list", text, [(path, None, None, speaker) for path, _, _, speaker in rows])


def _speechbrain(rows: list[tuple[str, float, float, str]]) -> Case:
    lines = [f"u{n},{b - a},{p},{int(a * 16000)},{int(b * 16000)},{s}" for n, (p, a, b, s) in enumerate(rows)]
    return Case("SpeechBrain", "train.csv", "\n".join(["ID,duration,wav,start,stop,spk_id", *lines]) + "\n", rows)


def _speechbrain_json(rows: list[tuple[str, float, float, str]]) -> Case:
    document = {
        f"u{n}": {"wav": {"file": p, "start": int(a * 16000), "stop": int(b * 16000)}, "spk_id": s}
        for n, (p, a, b, s) in enumerate(rows)
    }
    return Case("SpeechBrain JSON", "train.json", json.dumps(document, indent=2), rows)


def _three_d_speaker(rows: list[tuple[str, float, float, str]]) -> Case:
    lines = [f"u{n},{b - a},{p},{a:.2f},{b:.2f},{s}" for n, (p, a, b, s) in enumerate(rows)]
    return Case("3D-Speaker", "train.csv", "\n".join(["ID,dur,path,start,stop,spk", *lines]) + "\n", rows)


_MANIFESTS = (_nemo, _wespeaker, _speechbrain, _speechbrain_json, _three_d_speaker)

KINDS: dict[str, Callable[[random.Random], Case]] = {
    "tables": lambda draw: draw.choice([tab_separated, comma_separated])(draw),
    "trials": trial_list,
    "scores": score_file,
    "manifests": peer_manifest,
}


def cases(kind: str, n: int, seed: int = 17) -> list[Case]:
    """Returns the first n inputs of a kind."""
    draw = random.Random(f"{kind} {seed}")
    return [KINDS[kind](draw) for _ in range(n)]
