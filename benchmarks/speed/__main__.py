"""Compares the speed of this library with other ways to run an ECAPA-TDNN on a CPU, in one run and in turn.

    make bench                             all parts, in a separate environment, into build/bench
    make bench BENCH="--quick"             C = 1024: 3 s in batches of 1 and 16, and 60 s
    python -m benchmarks.speed --render build/bench/speed.json     tables and plot of an existing run

The script writes all times to speed.json after each cell, then speed.md and speed.png. Run it on an idle machine.
Weights and waveforms are random. The docs page speed.md explains the result.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from benchmarks.speed.engines import EAGER, ENGINES, OURS
from benchmarks.speed.model import Model, cores

PARTS = ("grid", "features", "memory", "start_up", "files")
PACKAGES = ("ecapa-jax", "jax", "torch", "speakerlab", "speechbrain", "onnxruntime", "openvino", "flaxspeaker")
DOT_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
QUICK: dict[str, Any] = {
    "widths": [1024],
    "seconds": [3.0, 60.0],
    "cell_seconds": 8.0,
    "parts": ["grid", "features"],
    "engines": [name for name in ENGINES if name != "torch-compile"],
}


def main() -> None:
    """Measures, stores the results, and prints the report."""
    arguments = _arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.render:
        results = json.loads(arguments.render.read_text("utf-8"))
    else:
        results = _measure_parts(arguments, out / "speed.json")
    _render(results, out)
    print((out / "speed.md").read_text("utf-8"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few cells, no torch.compile, features; what else is said holds"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 3.0, 10.0, 60.0])
    parser.add_argument("--most-seconds", type=float, default=160.0, help="leave out cells with more audio in a batch")
    parser.add_argument("--cell-seconds", type=float, default=12.0, help="time for a cell; at least three turns")
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--process-turns", type=int, default=7, help="processes of each kind in start_up")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--render", type=Path, metavar="JSON")
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def _measure_parts(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Measures part by part; `path` always contains the results so far."""
    from benchmarks.speed.grid import one_line
    from benchmarks.speed.work import dot_peaks

    warnings.filterwarnings("ignore", category=UserWarning)  # warnings of the peers
    engines = tuple(dict.fromkeys([OURS, EAGER, *arguments.engines]))
    engines = tuple(name for name in ENGINES if name in engines)
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": cpu_name(),
        "cores": cores(),
        "versions": _versions(),
        "notes": {},
        "peaks": dot_peaks(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for part in PARTS:
            if part in arguments.parts:
                begin = time.perf_counter()
                _say(f"{part}:")
                results[part] = []
                try:
                    for row in _part(part, arguments, engines, folder, results["notes"]):
                        results[part].append(row)
                        _store(results, path)
                except Exception as error:  # the other parts may have taken hours
                    traceback.print_exc()
                    results["notes"][part] = one_line(error)
                _say(f"{part}: {time.perf_counter() - begin:.0f} s")
    _store(results, path)
    return results


def _part(
    part: str, arguments: argparse.Namespace, engines: tuple[str, ...], folder: Path, notes: dict[str, str]
) -> Any:
    """Yields the rows of one part."""
    widest = max(arguments.widths)
    if part == "grid":
        from benchmarks.speed import grid

        plan = grid.Plan(
            engines=engines,
            widths=tuple(arguments.widths),
            batches=tuple(arguments.batches),
            seconds=tuple(arguments.seconds),
            most_seconds=arguments.most_seconds,
            cell_seconds=arguments.cell_seconds,
        )
        return grid.measure(plan, folder, notes, _say)
    if part == "features":
        from benchmarks.speed import features

        return features.measure((3.0, 60.0), arguments.cell_seconds)
    if part == "memory":
        from benchmarks.speed import engines_torch, memory

        model = Model(widest, folder)
        model.write()
        engines_torch.export(model)
        return memory.measure(engines, model, [(16, 3.0), (1, 60.0)], notes)
    if part == "start_up":
        from benchmarks.speed import start_up

        return start_up.measure(folder, widest, arguments.process_turns)
    from benchmarks.speed import files

    return files.measure(folder, widest, arguments.files, 2)


def _render(results: dict[str, Any], out: Path) -> None:
    from benchmarks.speed import plot, tables

    (out / "speed.md").write_text(tables.markdown(results), "utf-8")
    if results.get("grid"):
        plot.draw(results, out / "speed.png")


def _store(results: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cpu_name() -> str:
    """Returns the CPU name that the system reports, and its instructions for matrix products."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    said = {name.strip(): value.strip() for name, value in said.items()}
    if "model name" not in said:
        return platform.processor()
    flags = [name for name in DOT_FLAGS if name in said.get("flags", "").split()]
    return f"{said['model name']} ({', '.join(flags) or 'no ' + ', '.join(DOT_FLAGS)})"


if __name__ == "__main__":
    main()
