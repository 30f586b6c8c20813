"""Reads trial lists in the formats of VoxCeleb, Kaldi and others, and the speakers of their recordings.

VoxCeleb         1 id10270/a/00001.wav id10270/b/00008.wav           label enrol test
Kaldi, VOiCES    speaker1-a speaker1-b target                        enrol test label
WeSpeaker        speaker1-a speaker1-b 0.61 target                   enrol test score label
ESPnet           speaker1-a*speaker1-b 1                             enrol*test label
NIST             modelid segmentid side targettype, under a header   by name
CSV, TSV         header with enrol, test, label, and any others      by name, in any order

`LABELS` lists the names of labels. The first line decides which format a file has, or all lines if it is ambiguous.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ecapa_jax.errors import TrialError
from ecapa_jax.evaluation.tables import Table, read_table

_TARGETS = (
    "1",
    "target",
    "targets",
    "tgt",
    "tar",
    "true",
    "same",
    "genuine",
    "positive",
    "pos",
    "yes",
    "match",
    "mated",
)
_NONTARGETS = (
    *("0", "-1", "nontarget", "nontgt", "nontar", "non", "false", "different", "diff", "imposter", "impostor", "imp"),
    *("negative", "neg", "no", "nonmatch", "mismatch", "nonmated"),
)
LABELS = dict.fromkeys(_TARGETS, True) | dict.fromkeys(_NONTARGETS, False)
"""Names of labels, in lower case and without `-` and `_` (as in `non-target`, `non_target`)."""

NAMES = {
    "enrol": (
        *("enrol", "enroll", "enrolment", "enrollment", "enrol_path", "enroll_path", "enrol_id", "enroll_id"),
        *("model", "modelid", "model_id", "file1", "path1", "utt1", "wav1", "audio1", "reference", "a"),
    ),
    "test": (
        *("test", "test_path", "test_id", "segment", "segmentid", "segment_id", "file2", "path2", "utt2", "wav2"),
        *("audio2", "b"),
    ),
    "label": ("label", "target", "key", "targettype", "target_type", "labels", "is_target", "same_speaker"),
    "score": ("score", "scores", "llr", "cosine", "cos", "similarity"),
    "enrol_speaker": ("enrol_speaker", "enroll_speaker", "speaker1", "spk1"),
    "test_speaker": ("test_speaker", "speaker2", "spk2"),
}
"""Known column names by content; any other column is kept for breakdowns."""

_ALL_NAMES = {name for names in NAMES.values() for name in names}

_VOXCELEB_ID = re.compile(r"(?:^|/)(id\d{5})/")


@dataclasses.dataclass(frozen=True, eq=False)
class Trials:
    """A list of trials.

    Attributes:
      path: the file, for messages and reports.
      names: the distinct recordings (or enrolment models) of the list, enrolled ones first.
      enrol: [trials], index in `names` of the enrolled side.
      test: [trials], index in `names` of the tested side.
      labels: [trials], True for a target trial; None if the file has no labels.
      scores: [trials], if the file has scores.
      columns: all other columns by name, each [trials], as text.
      speakers: speaker of each of `names`, if known.
      speaker_source: origin of `speakers`, for reports; "" if they are unknown.
      repeated: number of trials that repeat another trial.
    """

    path: str
    names: tuple[str, ...]
    enrol: Int64[np.ndarray, " trials"]
    test: Int64[np.ndarray, " trials"]
    labels: Bool[np.ndarray, " trials"] | None
    scores: Float64[np.ndarray, " trials"] | None
    columns: Mapping[str, np.ndarray]
    speakers: tuple[str, ...] | None
    speaker_source: str
    repeated: int

    def __len__(self) -> int:
        return len(self.enrol)

    @property
    def known_labels(self) -> Bool[np.ndarray, " trials"]:
        """The labels of the trials.

        Raises:
          TrialError: the file has no labels.
        """
        if self.labels is None:
            raise TrialError(f"{self.path} has no labels: give a list with 1 or target, 0 or nontarget in every trial")
        return self.labels

    def select(self, keep: Bool[np.ndarray, " trials"]) -> Trials:
        """Selects some of the trials; keeps all names."""
        return dataclasses.replace(
            self,
            enrol=self.enrol[keep],
            test=self.test[keep],
            labels=None if self.labels is None else self.labels[keep],
            scores=None if self.scores is None else self.scores[keep],
            columns={name: values[keep] for name, values in self.columns.items()},
        )


def read_trials(path: str | os.PathLike[str]) -> Trials:
    """Reads and checks a trial list, or a scores file (one more field: the score).

    Speakers come from the columns `enrol_speaker` and `test_speaker`, or from the paths: VoxCeleb's `id10270/`, the
    folder of the file, or the folder above, whichever fits every label of the list first.

    Args:
      path: the file, which may be compressed by gzip.

    Raises:
      TrialError: a label is unknown, a line has too few fields, or a pair has two labels. The message names the line.
    """
    table = _split_star(read_table(path, _ALL_NAMES - LABELS.keys() - {"a", "b"}, is_header=_is_header))
    places = _find_columns(table)
    fields = {what: [row[at] for row in table.rows] for what, at in places.items()}
    labels = _parse_labels(table, fields["label"]) if "label" in fields else None
    names: dict[str, int] = {}
    enrol, test = (
        np.array([names.setdefault(name, len(names)) for name in _check_filled(table, fields[side], side)], np.int64)
        for side in ("enrol", "test")
    )
    others = [at for at in range(len(table.header or ())) if at not in places.values()]
    trials = Trials(
        path=table.path,
        names=tuple(names),
        enrol=enrol,
        test=test,
        labels=labels,
        scores=_parse_scores(table, fields["score"]) if "score" in fields else None,
        columns={table.header[at]: np.array([row[at] for row in table.rows]) for at in others} if table.header else {},
        speakers=None,
        speaker_source="",
        repeated=_check_pairs(table, enrol, test, labels, len(names)),
    )
    if "enrol_speaker" in fields and "test_speaker" in fields:
        return _with_columns(table, trials, fields["enrol_speaker"], fields["test_speaker"])
    return _with_paths(trials)


def _is_header(fields: list[str]) -> bool:
    """Whether fields between spaces are column names: all are known, and none can be the name of a recording."""
    lower = [field.lower() for field in fields]
    named = all(any(field in NAMES[side][:-1] for field in lower) for side in ("enrol", "test"))
    return named and all(field in _ALL_NAMES or field in ("side", "channel") for field in lower)


def _split_star(table: Table) -> Table:
    """Splits ESPnet's `enrol*test label` into three fields."""
    if table.header is not None or len(table.rows[0]) not in (2, 3) or table.rows[0][0].count("*") != 1:
        return table
    rows = [[*row[0].split("*"), *row[1:]] for row in table.rows]
    return dataclasses.replace(table, rows=rows)


def with_speakers(trials: Trials, speakers: Mapping[str, str], source: str) -> Trials:
    """Returns the trials with a speaker for each name.

    Raises:
      TrialError: a name has no speaker, or a label contradicts the speakers.
    """
    if missing := [name for name in trials.names if name not in speakers]:
        raise TrialError(
            f"{source} has no speaker for {len(missing)} of {len(trials.names)} names, such as {missing[0]}"
        )
    known = tuple(speakers[name] for name in trials.names)
    if (at := _find_contradiction(trials, known)) is not None:
        a, b = trials.names[trials.enrol[at]], trials.names[trials.test[at]]
        kind = "target" if trials.known_labels[at] else "non-target"
        raise TrialError(f"{trials.path}: {a} and {b} are a {kind} trial, but {source} says otherwise")
    return dataclasses.replace(trials, speakers=known, speaker_source=source)


def read_speakers(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads Kaldi's utt2spk, with `utterance speaker` on each line.

    Raises:
      TrialError: a line has more or fewer than two fields, or an utterance has two speakers.
    """
    table = read_table(path, (), least_tabs=1)
    speakers: dict[str, str] = {}
    for index, row in enumerate(table.rows):
        if len(row) != 2:
            raise table.error(index, f"{len(row)} fields; a line is: utterance speaker")
        if speakers.setdefault(row[0], row[1]) != row[1]:
            raise table.error(index, f"{row[0]} has speaker {speakers[row[0]]} further up, here {row[1]}")
    return speakers


def read_enrolment(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Reads Kaldi's spk2utt, with `model utterance utterance ...` on each line.

    Raises:
      TrialError: a model has no utterances, or has two lines.
    """
    table = read_table(path, (), least_tabs=1 << 30)
    models: dict[str, tuple[str, ...]] = {}
    for index, row in enumerate(table.rows):
        if len(row) < 2:
            raise table.error(index, f"model {row[0]} has no utterances; a line is: model utterance utterance ...")
        if row[0] in models:
            raise table.error(index, f"model {row[0]} comes twice")
        models[row[0]] = tuple(dict.fromkeys(row[1:]))
    return models


def _find_columns(table: Table) -> dict[str, int]:
    """Finds which field holds what."""
    if table.header is not None:
        found = {what: table.column(names) for what, names in NAMES.items()}
        for what in ("enrol", "test"):
            if found[what] is None:
                raise TrialError(f"{table.path}: the header has no column {what}; it has {', '.join(table.header)}")
        return {what: at for what, at in found.items() if at is not None}
    first = table.rows[0]
    places = _guess_columns(table, first)
    for index, row in enumerate(table.rows):
        if len(row) != len(first):
            raise table.error(index, f"{len(row)} fields, the lines above have {len(first)}")
    return places


_ORDERS = (
    ("label", "enrol", "test"),
    ("enrol", "test", "label"),
    ("enrol", "test", "score"),
    ("score", "enrol", "test"),
    ("label", "enrol", "test", "score"),
    ("enrol", "test", "label", "score"),
    ("enrol", "test", "score", "label"),
    ("score", "label", "enrol", "test"),
    ("label", "score", "enrol", "test"),
    ("enrol", "test", "side", "label"),
    ("enrol", "test", "side", "score"),
)
"""Possible orders of fields in lines without a header, the more usual ones first."""


def _guess_columns(table: Table, first: Sequence[str]) -> dict[str, int]:
    """Finds which field holds what from the first line, or from all lines if the first fits several orders."""
    fitting = [order for order in _ORDERS if _fits(order, first)]
    if len(fitting) > 1:
        whole = [row for row in table.rows if len(row) == len(first)]
        fitting = [order for order in fitting if all(_fits(order, row) for row in whole)] or fitting
        if set(fitting) >= set(_ORDERS[:2]):
            fitting = []  # labels on both sides: either could be a name
    if not fitting:
        raise table.error(
            0,
            f"'{' '.join(first)[:80]}' is not a trial; a line is 'label enrol test', 'enrol test label' or 'enrol test "
            "score label' (label: 1 or target, 0 or nontarget), or the file is CSV or TSV with a header: "
            "enrol,test,label",
        )
    return {what: at for at, what in enumerate(fitting[0]) if what != "side"}


def _fits(order: Sequence[str], fields: Sequence[str]) -> bool:
    """Whether a line fits an order."""
    if len(order) != len(fields):
        return False
    checks = {"label": lambda text: _label(text) is not None, "score": _is_number, "side": _is_side}
    if order[0] == "score" and fields[0].isdecimal():
        return False  # a label, or a name
    return all(checks[what](text) for what, text in zip(order, fields, strict=True) if what in checks)


def _is_side(text: str) -> bool:
    """Whether a field names a side of a telephone call, as in NIST's lists."""
    return text.lower() in ("a", "b", "x", "1", "2")


def _label(text: str) -> bool | None:
    plain = text.lower()
    return LABELS.get(plain if plain == "-1" else plain.replace("-", "").replace("_", ""))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse_labels(table: Table, texts: Sequence[str]) -> Bool[np.ndarray, " trials"]:
    kinds = {text: _label(text) for text in dict.fromkeys(texts)}
    known = [kinds[text] for text in texts]
    if None in known:
        at = known.index(None)
        raise table.error(
            at,
            f"label '{texts[at][:40]}' is unknown; it must be 1 or target, 0 or nontarget, or a like one: "
            f"{', '.join(LABELS)}",
        )
    return np.array(known, bool)


def _parse_scores(table: Table, texts: Sequence[str]) -> Float64[np.ndarray, " trials"]:
    try:
        scores = np.array(texts, np.float64)
    except ValueError:
        at = next(index for index, text in enumerate(texts) if not _is_number(text))
        raise table.error(at, f"score '{texts[at][:40]}' is not a number") from None
    if not np.isfinite(scores).all():
        raise table.error(int(np.flatnonzero(~np.isfinite(scores))[0]), "the score is not finite")
    return scores


def _check_filled(table: Table, texts: Sequence[str], side: str) -> Sequence[str]:
    if "" in texts:
        raise table.error(texts.index(""), f"column {side} is empty")
    return texts


def _check_pairs(
    table: Table,
    enrol: Int64[np.ndarray, " trials"],
    test: Int64[np.ndarray, " trials"],
    labels: Bool[np.ndarray, " trials"] | None,
    n_names: int,
) -> int:
    """Counts repeated trials; raises a TrialError if a pair has both labels."""
    pairs = enrol * n_names + test
    order = np.argsort(pairs, kind="stable")
    again = np.flatnonzero(pairs[order][1:] == pairs[order][:-1])
    if labels is not None and len(wrong := again[labels[order[again]] != labels[order[again + 1]]]):
        first, second = sorted((int(order[wrong[0]]), int(order[wrong[0] + 1])))
        raise table.error(second, f"the same pair has the other label in line {table.lines[first]}")
    return len(again)


def _find_contradiction(trials: Trials, speakers: Sequence[str]) -> int | None:
    """Finds the first trial whose label contradicts its speakers."""
    if trials.labels is None:
        return None
    numbers = np.unique(np.array(speakers), return_inverse=True)[1]
    wrong = np.flatnonzero((numbers[trials.enrol] == numbers[trials.test]) != trials.labels)
    return int(wrong[0]) if len(wrong) else None


def _with_columns(table: Table, trials: Trials, enrol: Sequence[str], test: Sequence[str]) -> Trials:
    speakers: dict[str, str] = {}
    for side, numbers in ((enrol, trials.enrol), (test, trials.test)):
        for index, (number, speaker) in enumerate(zip(numbers.tolist(), side, strict=True)):
            name = trials.names[number]
            if speakers.setdefault(name, speaker) != speaker:
                raise table.error(index, f"{name} has speaker {speakers[name]} elsewhere, here {speaker}")
    return with_speakers(trials, speakers, "the list's speaker columns")


def _with_paths(trials: Trials) -> Trials:
    if trials.labels is None or not trials.labels.any() or trials.labels.all():
        return trials  # without labels there is nothing to check a guess with
    for source, rule in _PATH_RULES.items():
        speakers = [speaker for name in trials.names if (speaker := rule(name))]
        if len(speakers) == len(trials.names) and _find_contradiction(trials, speakers) is None:
            return dataclasses.replace(trials, speakers=tuple(speakers), speaker_source=source)
    return trials


def _voxceleb_speaker(name: str) -> str | None:
    found = _VOXCELEB_ID.search(name)
    return found[1] if found else None


def _make_folder_rule(above: int) -> Callable[[str], str | None]:
    def rule(name: str) -> str | None:
        """With the folders above, because two corpora can number their speakers alike."""
        parts = name.split("/")[: -1 - above]
        return "/".join(parts) or None

    return rule


_PATH_RULES: dict[str, Callable[[str], str | None]] = {
    "VoxCeleb's id in the path": _voxceleb_speaker,
    "the file's folder, which fits every label": _make_folder_rule(0),
    "the folder above the file's, which fits every label": _make_folder_rule(1),
}


def match_scores(scored: Trials, trials: Trials) -> Float64[np.ndarray, " trials"]:
    """Returns the scores of one file for the trials of another, matched by pair, in the order of the other.

    Raises:
      TrialError: `scored` has no scores, no score for a trial, or two scores for a trial.
    """
    if scored.scores is None:
        raise TrialError(f"{scored.path} has no scores: a line is 'enrol test label score'")
    number = {name: at for at, name in enumerate(scored.names)}
    known = np.array([number.get(name, -1) for name in trials.names], np.int64)
    pairs = scored.enrol * len(scored.names) + scored.test
    order = np.argsort(pairs, kind="stable")
    ranked = pairs[order]
    twice = np.flatnonzero((ranked[1:] == ranked[:-1]) & (scored.scores[order][1:] != scored.scores[order][:-1]))
    wanted = np.where(
        (known[trials.enrol] < 0) | (known[trials.test] < 0),
        -1,
        known[trials.enrol] * len(scored.names) + known[trials.test],
    )
    at = np.minimum(np.searchsorted(ranked, wanted), len(ranked) - 1)
    problems = {
        "no score": np.flatnonzero(ranked[at] != wanted),
        "two scores": np.flatnonzero(np.isin(wanted, ranked[twice])),
    }
    for problem, where in problems.items():
        if len(where):
            pair = f"{trials.names[trials.enrol[where[0]]]} {trials.names[trials.test[where[0]]]}"
            raise TrialError(f"{scored.path} has {problem} for {len(where)} of {len(trials)} trials, as {pair}")
    return scored.scores[order[at]]
