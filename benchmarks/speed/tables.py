"""Formats results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.speed.engines import EAGER, ENGINES, KINDS, OURS
from benchmarks.speed.features import TITLES

DASH = "-"


def markdown(results: dict[str, Any]) -> str:
    """Returns the whole report.

    Args:
      results: the results that `python -m benchmarks.speed` stores as JSON; parts that were not measured are omitted.
    """
    parts = [_machine(results)]
    for kind, title in KINDS.items():
        if rows := [row for row in results.get("grid", []) if row["kind"] == kind]:
            parts += [f"### {title.capitalize()}", *_grid(rows, results["peaks"])]
    makers = {"features": _features, "memory": _memory, "start_up": _start_up, "files": _files}
    parts += [text for name, maker in makers.items() if results.get(name) for text in maker(results[name])]
    if notes := results.get("notes"):
        parts += ["### Not measured", "\n".join(f"- {name}: {why}" for name, why in sorted(notes.items()))]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], n_text: int = 1) -> str:
    """Returns a Markdown table whose first `n_text` columns are text, and whose other columns are numbers."""
    rule = ["---"] * n_text + ["--:"] * (len(head) - n_text)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def number(value: float | None) -> str:
    """Formats a number with three significant digits and without an exponent, or a dash for None."""
    if value is None:
        return DASH
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(ratio: float | None) -> str:
    """Formats a ratio of speeds."""
    return DASH if ratio is None else f"{number(ratio)}x"


def _machine(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    peaks = "; ".join(
        f"{dtype} {', '.join(f'{library} {number(value)}' for library, value in every.items())}"
        for dtype, every in results["peaks"].items()
    )
    return (
        f"{results['machine']}, {results['cores']} cores; {results['date']}.\n{versions}.\n"
        f"Matrix products of side 2048, GFLOP/s: {peaks}."
    )


def _grid(rows: list[dict[str, Any]], peaks: dict[str, dict[str, float]]) -> list[str]:
    names = [name for name in ENGINES if any(name in row["engines"] for row in rows)]
    titles = [ENGINES[name].title for name in names]
    head = ["C", "batch", "seconds", *titles]

    def wide(show: Any) -> str:
        body = [
            [str(row["width"]), str(row["batch"]), f"{row['seconds']:g}", *(show(row["engines"].get(n)) for n in names)]
            for row in rows
        ]
        return table(head, body, n_text=0)

    texts = [
        "Milliseconds for one call, medians.",
        wide(lambda found: number(found and 1e3 * found["median"])),
        f"How many times as fast as {ENGINES[EAGER].title}: medians of the ratios of the turns.",
        wide(lambda found: times(found and found["than_eager"])),
    ]
    for row in rows:
        if row in _rows_in_detail(rows):
            recordings = "one recording" if row["batch"] == 1 else f"{row['batch']} recordings"
            texts += [
                f"C = {row['width']}, {recordings} of {row['seconds']:g} s:",
                _detail(row, peaks),
            ]
    return texts


def _rows_in_detail(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the cells to show in full: the widest network on 3 s and on the longest recordings."""
    width = max(row["width"] for row in rows)
    lengths = {3.0, max(row["seconds"] for row in rows)}
    return [row for row in rows if row["width"] == width and row["seconds"] in lengths]


def _detail(row: dict[str, Any], peaks: dict[str, dict[str, float]]) -> str:
    counted = row["kind"] == "network"
    head = [
        "engine",
        "ms",
        f"times as fast as {ENGINES[EAGER].title}",
        f"times as fast as {ENGINES[OURS].title}",
        "hours of audio per hour and core",
    ]
    head += ["GFLOP/s", "of the peak"] * counted + ["largest difference"]
    body = []
    for name, found in row["engines"].items():
        cells = [
            ENGINES[name].title,
            number(1e3 * found["median"]),
            times(found["than_eager"]),
            times(found["than_ours"]),
            number(found["hours"]),
        ]
        if counted:
            peak = max(peaks[ENGINES[name].dtype].values())
            cells += [number(found["gflops"]), f"{found['gflops'] / peak:.0%}"]
        body.append([*cells, DASH if found["gap"] is None else f"{found['gap']:.0e}"])
    return table(head, body)


def _features(rows: list[dict[str, Any]]) -> list[str]:
    body = [
        [f"{row['seconds']:g}", TITLES[name], number(1e3 * found["median"]), times(1 / found["than_ours"]),
         f"{found['gap']:.0e}"]
        for row in rows
        for name, found in row["engines"].items()
    ]  # fmt: skip
    head = ["seconds", "front end", "ms", "ecapa-jax, times as fast", "largest difference"]
    return ["### Features alone", "One recording, 80 mel bands, mean subtracted.", table(head, body, n_text=2)]


def _memory(rows: list[dict[str, Any]]) -> list[str]:
    body = [
        [ENGINES[row["engine"]].title, KINDS[row["kind"]], str(row["batch"]), f"{row['seconds']:g}",
         f"{row['loaded_mib']:.0f}", f"{row['peak_mib']:.0f}"]
        for row in rows
    ]  # fmt: skip
    head = ["engine", "what", "batch", "seconds", "model loaded, MiB", "peak, MiB"]
    lead = f"C = {rows[0]['width']}; each engine in a process of its own, including everything that it imports."
    return ["### Peak memory", lead, table(head, body, n_text=2)]


def _start_up(rows: list[dict[str, Any]]) -> list[str]:
    body = [
        [
            row["model"],
            number(row["median"]["ours"]),
            number(row["median"]["speechbrain"]),
            times(row["than_speechbrain"]),
        ]
        for row in rows
    ]
    head = ["model", "ecapa-jax verify, s", "SpeechBrain, s", "ecapa-jax, times as fast"]
    lead = "Two recordings of 3 s and 4 s, from the start of the process to its end, with warm caches."
    return ["### Start-up", lead, table(head, body)]


def _files(rows: list[dict[str, Any]]) -> list[str]:
    body = [
        [row["dtype"], str(row["width"]), str(row["files"]), f"{row['audio_seconds']:.0f}", f"{row['padding']:.0%}",
         number(row["median"]["embed"]), number(row["median"]["bare"]), f"{row['share']:.0%}", f"{row['gap']:.0e}"]
        for row in rows
    ]  # fmt: skip
    head = ["dtype", "C", "files", "seconds of audio", "padding", "embed, s", "bare function, s", "share", "difference"]
    lead = "FLAC files of 2 to 20 s through `SpeakerEncoder.embed`; the same padded batches through the bare function."
    return ["### Files", lead, table(head, body)]
