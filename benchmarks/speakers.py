"""Measures time and memory of a speaker store: python benchmarks/speakers.py [--speakers 1000000]

The script enrols random embeddings. Another process opens, loads and searches the store.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from ecapa_jax import api
from ecapa_jax.identify.store import SpeakerStore

BLOCK = 100_000
RUNS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speakers", type=int, default=1_000_000)
    parser.add_argument("--store", type=Path, help="an existing store: load and search it, and nothing else")
    arguments = parser.parse_args()
    if arguments.store:
        print(json.dumps(load_and_search(arguments.store)))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "speakers.db"
        start = time.perf_counter()
        fill(store, arguments.speakers)
        report = {
            "speakers": arguments.speakers,
            "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "enrolment_s": round(time.perf_counter() - start, 1),
            "file_mib": round(store.stat().st_size / 2**20),
        }
        done = subprocess.run(
            [sys.executable, __file__, "--store", store], stdout=subprocess.PIPE, text=True, check=True
        )
    print(json.dumps({**report, **json.loads(done.stdout)}, indent=2))


def fill(path: Path, n_speakers: int) -> None:
    rng = np.random.default_rng(0)
    with SpeakerStore.open(path, api.load()) as store:
        dim = store.encoder.config.ecapa.embedding_dim
        for first in range(0, n_speakers, BLOCK):
            last = min(first + BLOCK, n_speakers)
            names = [f"speaker {index}" for index in range(first, last)]
            store.enroll_embeddings(names, rng.standard_normal((last - first, dim), np.float32))


def load_and_search(path: Path) -> dict:
    encoder = api.load()
    before = memory("VmRSS")
    start = time.perf_counter()
    with SpeakerStore.open(path, encoder) as store:
        gallery = store.gallery()
        gallery.centroids.block_until_ready()
        loaded = time.perf_counter() - start
        resident, peak = memory("VmRSS") - before, memory("VmHWM") - before
        rng = np.random.default_rng(0)
        enrolled = rng.standard_normal(
            (3, encoder.config.ecapa.embedding_dim), np.float32
        )  # the first embeddings of `fill`
        found = [candidates[0].name for candidates in store.search(enrolled, top=1)]
        if found != ["speaker 0", "speaker 1", "speaker 2"]:
            raise SystemExit(f"wrong answers: {found}")
        query = rng.standard_normal((1, encoder.config.ecapa.embedding_dim), np.float32)
        times = []
        store.search(query, top=10)
        for _ in range(RUNS):
            start = time.perf_counter()
            store.search(query, top=10)
            times.append(1e3 * (time.perf_counter() - start))
    return {
        "load_s": round(loaded, 1),
        "centroids_mib": round(gallery.centroids.nbytes / 2**20),
        "resident_after_load_mib": round(resident),
        "peak_while_loading_mib": round(peak),
        "search_ms": {
            "median": round(statistics.median(times), 1),
            "fastest": round(min(times), 1),
            "slowest": round(max(times), 1),
        },
    }


def memory(field: str) -> float:
    """Returns a memory field of this process in MiB, from /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


if __name__ == "__main__":
    main()
