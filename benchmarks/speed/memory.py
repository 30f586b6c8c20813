"""Measures the peak memory of each engine in a separate process, `python -m benchmarks.speed.memory`."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed.engines import ENGINES, make
from benchmarks.speed.model import Model, noise, random_features

ROOT = Path(__file__).parents[2]


def measure(
    engines: tuple[str, ...], model: Model, cells: list[tuple[int, float]], notes: dict[str, str]
) -> list[dict]:
    """Returns rows of results; the model must be written and exported.

    Args:
      cells: batch size and seconds of each cell.
      notes: a dict that receives the reason if an engine has no result.
    """
    rows = []
    for name in engines:
        for batch, seconds in cells:
            command = [
                sys.executable,
                "-m",
                __name__,
                name,
                str(model.folder),
                str(model.width),
                str(batch),
                str(seconds),
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
                notes[f"{ENGINES[name].title}, memory"] = why
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"engine": name, "width": model.width, "batch": batch, "seconds": seconds, **found})
    return rows


def peak_mib() -> float:
    """Returns the peak resident memory of this process.

    On Linux this is `VmHWM`, because `ru_maxrss` starts with the memory of the parent process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts in bytes


def main() -> None:
    """Prints the peaks before and after some calls as JSON."""
    name, folder, width, batch, seconds = sys.argv[1:]
    engine = make(name, Model(int(width), Path(folder)))
    report: dict[str, Any] = {"kind": "embed" if engine.embed else "network", "loaded_mib": peak_mib()}
    if engine.embed:
        call, inputs = engine.embed, noise(int(batch), float(seconds))
    else:
        call, inputs = engine.network, random_features(int(batch), float(seconds))
    for _ in range(3):
        call(inputs)
    print(json.dumps({**report, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
