"""Measures exact search among random enrolled speakers: python benchmarks/search.py [--enrolled 1000000]

The script prints one line for each number of queries, with the median, fastest and slowest run. It checks the results
against NumPy in float64.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import jax
import numpy as np

from ecapa_jax.scoring.cosine import unit
from ecapa_jax.scoring.search import search

CHUNK = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--enrolled", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    imported = peak_mib()
    start = time.perf_counter()
    enrolled = jax.device_put(random_units(arguments.enrolled, arguments.dim))  # jnp.asarray would copy twice
    enrolled.block_until_ready()
    print(f"{arguments.enrolled} x {arguments.dim} float32: {enrolled.nbytes / 2**20:.0f} MiB, ", end="")
    print(f"made in {time.perf_counter() - start:.1f} s; {jax.devices()[0].device_kind}, jax {jax.__version__}")
    for n_queries in arguments.queries:
        queries = np.random.default_rng(1).standard_normal((n_queries, arguments.dim), np.float32)
        times = time_search(queries, enrolled, arguments.k, arguments.runs)
        print(f"search of {n_queries} queries: median {statistics.median(times):.1f} ms ", end="")
        print(f"({min(times):.1f} to {max(times):.1f}); peak memory above the imports {peak_mib() - imported:.0f} MiB")
    check_results(np.asarray(unit(queries[:4])), np.asarray(enrolled), arguments.k)


def random_units(count: int, dim: int) -> np.ndarray:
    """Returns rows of length 1, computed in place, so that the search determines the peak memory."""
    rows = np.random.default_rng(0).standard_normal((count, dim), np.float32)
    for start in range(0, count, CHUNK):
        part = rows[start : start + CHUNK]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def time_search(queries: np.ndarray, enrolled: jax.Array, k: int, runs: int) -> list[float]:
    """Returns milliseconds of each run, from NumPy queries to NumPy results, after compiling."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        jax.device_get(search(queries, enrolled, k, len(enrolled)))
        times.append(1e3 * (time.perf_counter() - start))
    return times[1:]


def check_results(queries: np.ndarray, enrolled: np.ndarray, k: int) -> None:
    """Checks that the rows equal those of NumPy in float64, unless scores differ by less than the float32 precision."""
    scores, rows = jax.device_get(search(queries, enrolled, k))
    exact = np.concatenate(
        [queries.astype(np.float64) @ enrolled[at : at + CHUNK].T for at in range(0, len(enrolled), CHUNK)], axis=1
    )
    best = -np.sort(-exact, axis=1)[:, :k]
    error = np.abs(scores - best).max()
    same = np.mean(rows == np.argsort(-exact, axis=1)[:, :k])
    print(f"against NumPy in float64: scores differ by {error:.1e} at most, {same:.0%} of the rows are the same")
    assert error < 1e-6


def peak_mib() -> float:
    """Returns the peak resident memory of this process in MiB (ru_maxrss is in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
