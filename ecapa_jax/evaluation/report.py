"""Writes the figures of a list as text, JSON and Markdown, and its scores as a file."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ecapa_jax.evaluation.measure import Measurement
from ecapa_jax.evaluation.trials import Trials

_TITLES = {
    "eer": "EER",
    "rocch_eer": "EER, ROC hull",
    "min_cllr": "minCllr",
    "cllr": "Cllr",
    "far": "FAR at threshold",
    "frr": "FRR at threshold",
}
_PREFIXES = {"min_dcf_": "minDCF, p ", "act_dcf_": "actDCF, p ", "frr_at_far_": "FRR at FAR "}
_RATES = ("eer", "rocch_eer", "far", "frr")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The report on one list scored by one system.

    Attributes:
      trials: name of the list.
      system: `plain`, `as-norm`, or the name of a scores file.
      n_trials, n_targets, n_names: numbers of trials, target trials and recordings in the list.
      n_speakers: number of speakers; None if unknown.
      figures: figures by name.
      groups: breakdown by column.
      notes: remarks on how the figures were computed.
      published: published figures on the list.
      against: differences to the figures of a baseline.
    """

    trials: str
    system: str
    n_trials: int
    n_targets: int
    n_names: int
    n_speakers: int | None
    figures: Mapping[str, Measurement]
    groups: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    against: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain objects; rates are fractions of 1."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """Returns the report as aligned lines of text."""
        speakers = f", {self.n_speakers} speakers" if self.n_speakers is not None else ""
        lines = [
            f"{self.trials}  ({self.system})",
            f"  {self.n_trials} trials, {self.n_targets} of them target; {self.n_names} recordings or models{speakers}",
        ]
        for name, figure in self.figures.items():
            lines.append(f"  {title(name):<22}{format_figure(name, figure.value):>9}{_format_interval(name, figure)}")
        for name, value in self.published.items():
            lines.append(f"  published: {name}: {value}")
        for name, gap in self.against.items():
            spread = f"[{_format_signed(name, gap['low'])}, {_format_signed(name, gap['high'])}]"
            value = _format_signed(name, gap["value"])
            lines.append(f"  against the baseline: {title(name)} {value} {spread}, p {gap['p_value']:.2g}")
        for column, groups in self.groups.items():
            lines += ["", *(f"  {line}" for line in _format_groups(column, groups))]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def list_name(path: str) -> str:
    """Returns the file name of a list without its suffixes."""
    return Path(path).name.removesuffix(".gz").rsplit(".", 1)[0]


def title(name: str) -> str:
    """Returns the title of a figure."""
    for prefix, text in _PREFIXES.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return text + (f"{100 * float(rest):g}%" if prefix == "frr_at_far_" else rest.replace("_", ", costs ", 1))
    return _TITLES[name]


def format_figure(name: str, value: float) -> str:
    """Formats a figure: rates in percent, everything else with four digits."""
    return f"{value:.2%}" if name in _RATES or name.startswith("frr_at_far_") else f"{value:.4f}"


def markdown(reports: Sequence[Report]) -> str:
    """Makes a Markdown table with one row per report: EER and minDCF with intervals."""
    costs = [name for name in reports[0].figures if name.startswith("min_dcf_")]
    names = ["eer", *costs]
    lines = ["| list | scores | trials | speakers | " + " | ".join(title(name) for name in names) + " |"]
    lines.append("|---|---|--:|--:|" + "--:|" * len(names))
    for report in reports:
        cells = [
            f"{format_figure(name, report.figures[name].value)}{_format_interval(name, report.figures[name])}".replace(
                "  ", " "
            )
            for name in names
        ]
        speakers = "?" if report.n_speakers is None else str(report.n_speakers)
        head = f"| {list_name(report.trials)} | {report.system} | {report.n_trials} | {speakers} | "
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_scores(path: Path, trials: Trials, scores: Float64[np.ndarray, " trials"]) -> None:
    """Writes `enrol test label score` with a header, separated by tabs; other columns of the list follow.

    Scores are written with all digits, so that the file gives exactly the same figures.
    """
    labels = ["" if trials.labels is None else str(int(label)) for label in trials.known_labels]
    columns = [values.tolist() for values in trials.columns.values()]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["enrol", "test", "label", "score", *trials.columns])
        names = trials.names
        sides = ([names[number] for number in side.tolist()] for side in (trials.enrol, trials.test))
        writer.writerows(zip(*sides, labels, scores.tolist(), *columns, strict=True))


def _format_interval(name: str, figure: Measurement) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"  [{format_figure(name, figure.low)}, {format_figure(name, figure.high)}]"


def _format_signed(name: str, value: float) -> str:
    return f"{value:+.2%}" if name == "eer" else f"{value:+.4f}"


def _format_groups(column: str, groups: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [[column, "trials", "target", "EER", "minDCF"]]
    for group in groups:
        figures = ["-", "-"] if group["eer"] is None else [f"{group['eer']:.2%}", f"{group['min_dcf']:.4f}"]
        rows.append([str(group["value"]), str(group["n_trials"]), str(group["n_targets"]), *figures])
    widths = [max(len(row[at]) for row in rows) for at in range(5)]
    return ["  ".join([row[0].ljust(widths[0]), *(row[at].rjust(widths[at]) for at in range(1, 5))]) for row in rows]
