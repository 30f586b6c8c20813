"""Measures `embed --manifest` on a corpus of short clips: restarts after kills, memory, throughput.

    python benchmarks/corpus.py --data DATA [--files 10000] [--kills 6]

DATA is a folder with speech. The script mixes pairs of clips of 0.3 to 1.5 s from it and writes them to a temporary
folder. It measures three things: the time of an encoder that has compiled all programs, compared with the bare compiled
function on the same padded batches; the resident memory during that run; and the results of the command line, which is
killed (SIGKILL) at random moments and restarted, compared row by row with the first run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import soundfile

from ecapa_jax import api
from ecapa_jax.corpus.manifest import Manifest, read_manifest, shard_bounds
from ecapa_jax.corpus.run import embed_corpus
from ecapa_jax.encoder import SpeakerEncoder

RATE = 16000
SECONDS = (0.3, 1.5)
SHARD_SIZE = 500
N_SOURCES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--model", help="bundle directory; the packaged model unless given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), arguments.data, arguments.files, arguments.kills, arguments.model)
    print(json.dumps(report, indent=2))


def measure(folder: Path, data: Path, n_files: int, n_kills: int, model: str | None) -> dict:
    """Runs all measurements; raises if rows are lost, repeated or changed."""
    manifest_path = make_clips(folder, data, n_files)
    manifest = read_manifest(manifest_path)
    encoder = api.load(model)
    encoder.warm_up(SECONDS[1])
    cpu = time.process_time()
    with sample_memory() as memory:
        whole = embed_corpus(encoder, manifest, folder / "whole", shard_size=SHARD_SIZE)
    cpu = time.process_time() - cpu
    bare, bare_cpu = measure_bare_function(encoder, manifest)
    kills = run_and_kill(manifest_path, folder / "killed", n_kills, model, folder / "cache")
    compare(manifest, folder / "whole", folder / "killed")
    first, last = peak_of_halves(memory)
    return {
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}",
        "files": whole.rows,
        "errors": whole.errors,
        "speech_hours": round(whole.speech_seconds / 3600, 3),
        "corpus_seconds": whole.wall_seconds,
        "speech_hours_per_second": round(whole.hours_per_second, 4),
        "bare_function_seconds": round(bare, 2),
        "share_of_bare_throughput": round(bare / whole.wall_seconds, 3),
        "cpu_seconds": round(cpu, 2),
        "bare_function_cpu_seconds": round(bare_cpu, 2),
        "peak_rss_mib_first_half": first,
        "peak_rss_mib_second_half": last,
        "kills": kills,
        "rows_identical_after_kills": whole.rows,
    }


def make_clips(folder: Path, data: Path, n_files: int) -> Path:
    """Cuts and mixes clips; returns the manifest in JSON lines."""
    rng = np.random.default_rng(0)
    found = sorted(path for path in data.rglob("*.flac") if "aug_" not in str(path))
    if not found:
        raise SystemExit(f"no .flac below {data}")
    chosen = [found[index] for index in np.linspace(0, len(found) - 1, N_SOURCES).astype(int)]
    sources = [sound for sound, rate in map(read_mono, chosen) if rate == RATE and len(sound) > RATE * SECONDS[1]]
    (folder / "clips").mkdir()
    rows = []
    for index in range(n_files):
        length = int(RATE * rng.uniform(*SECONDS))
        parts = []
        for gain in (1.0, rng.uniform(0, 0.3)):
            sound = sources[rng.integers(len(sources))]
            start = rng.integers(len(sound) - length)
            parts.append(gain * sound[start : start + length])
        path = folder / "clips" / f"{index:05d}.wav"
        soundfile.write(path, 0.7 * sum(parts), RATE)
        rows.append({"id": f"clip-{index:05d}", "path": str(path)})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return manifest


def read_mono(path: Path) -> tuple[np.ndarray, int]:
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return sound[:, 0], rate


@contextlib.contextmanager
def sample_memory() -> Iterator[list[float]]:
    """Records the resident memory of this process in MiB ten times per second."""
    samples: list[float] = []
    done = threading.Event()

    def run_sampler() -> None:
        while not done.wait(0.1):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            samples.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    thread = threading.Thread(target=run_sampler)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def peak_of_halves(samples: list[float]) -> tuple[int, int]:
    """Returns the highest value of each half."""
    middle = len(samples) // 2
    return round(max(samples[:middle])), round(max(samples[middle:]))


def measure_bare_function(encoder: SpeakerEncoder, manifest: Manifest) -> tuple[float, float]:
    """Returns wall and CPU time of the compiled function alone on batches of the same shapes and lengths."""
    seconds, cpu = 0.0, 0.0
    noise = np.random.default_rng(0).standard_normal(int(2 * RATE * SECONDS[1])).astype(np.float32)
    for first, last in shard_bounds(len(manifest), SHARD_SIZE):
        lengths = [soundfile.info(path).frames for path in manifest.rows(first, last)[1]]
        for batch, rows in encoder.buckets.stream(noise[:length] for length in lengths):
            padded = np.zeros((batch.rows, batch.samples), np.float32)
            placed = jax.device_put((padded, np.array([len(row) for row in rows], np.int32)), encoder.sharding)
            start, cpu_start = time.perf_counter(), time.process_time()
            jax.block_until_ready(encoder.programs(encoder._folded, *placed))
            seconds, cpu = seconds + time.perf_counter() - start, cpu + time.process_time() - cpu_start
    return seconds, cpu


def run_and_kill(manifest: Path, output: Path, n_kills: int, model: str | None, cache: Path) -> list[dict]:
    """Runs the command line, kills it at random moments, and returns the moments and the numbers of shards."""
    command = [sys.executable, "-m", "ecapa_jax.cli.main", "embed", "--manifest", str(manifest), "--output"]
    command += [str(output), "--shard-size", str(SHARD_SIZE), "--json", *(["--model", model] if model else [])]
    # Without the cache, restarts would spend most of their time compiling.
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    chance = random.Random(0)
    kills: list[dict] = []
    for _ in range(n_kills):
        before = count_shards(output)
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        ) as process:
            wait_for_shard(process, output, before)
            time.sleep(chance.uniform(0, 6))
            process.send_signal(signal.SIGKILL)
        if process.returncode != -signal.SIGKILL:
            break  # the run ended before the kill
        kills.append({"shards_before": before, "shards_after": count_shards(output)})
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return kills


def count_shards(output: Path) -> int:
    return len(list(output.glob("shard-*.parquet")))


def wait_for_shard(process: subprocess.Popen, output: Path, before: int) -> None:
    """Waits until the run has written another shard, so that every run makes progress, or has ended."""
    deadline = time.monotonic() + 900
    while process.poll() is None and count_shards(output) == before and time.monotonic() < deadline:
        time.sleep(0.02)


def compare(manifest: Manifest, a: Path, b: Path) -> None:
    """Checks that both runs have every id once, in order, with identical embeddings."""
    first, second = pq.read_table(a), pq.read_table(b)
    ids = manifest.rows(0, len(manifest))[0]
    if first["id"].to_pylist() != ids or second["id"].to_pylist() != ids:
        raise SystemExit("rows are lost, doubled or out of order")
    for name in ("embedding", "seconds", "error"):
        if not first[name].combine_chunks().equals(second[name].combine_chunks()):
            raise SystemExit(f"{name} differs after kills")
    bits = [table["embedding"].combine_chunks().flatten().to_numpy().view(np.uint32) for table in (first, second)]
    if not (bits[0] == bits[1]).all():
        raise SystemExit("a bit of an embedding differs after kills")


if __name__ == "__main__":
    main()
