"""Measures time and memory of converting a checkpoint with 20.8 million parameters.

    python benchmarks/convert.py [--source FILE] [--runs 5]

Without FILE, the script first writes a random checkpoint of 3D-Speaker's full-size model. Each run is a new process.
Its memory is the peak above the memory after the imports, divided by the file's size. The time excludes imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from ecapa_jax.presets import PRESETS
from ecapa_jax.runtime import machine

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.footprint import measure_footprint
from helpers.torch_zip_writer import write_torch_zip
from helpers.weights import random_tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.source or Path(folder) / "ecapa_tdnn.bin"
        if arguments.source is None:
            write_torch_zip(source, random_tensors(PRESETS["3dspeaker"].ecapa))
        runs = [measure_footprint(source, Path(folder) / f"bundle-{run}") for run in range(arguments.runs)]
        size = source.stat().st_size
    seconds = [run["convert_seconds"] + run["save_seconds"] for run in runs]
    report = {
        "file_bytes": size,
        "seconds": {"median": statistics.median(seconds), "largest": max(seconds)},
        "convert_seconds": statistics.median(run["convert_seconds"] for run in runs),
        "save_seconds": statistics.median(run["save_seconds"] for run in runs),
        "base_bytes": statistics.median(run["base_bytes"] for run in runs),
        "peak_over_file": {
            "median": statistics.median(run["peak_bytes"] for run in runs) / size,
            "largest": max(run["peak_bytes"] for run in runs) / size,
        },
        "torch_imported": any(run["torch"] for run in runs),
        "versions": machine.versions(),
        "machine": machine.machine(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
