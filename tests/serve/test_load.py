"""Load test with 64 clients for two minutes: only allowed responses, exact scores, constant memory.

Run `pytest -s -m slow tests/serve/test_load.py`, with LOAD_SECONDS=20 for a short test.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ecapa_jax
from helpers.cli import PROGRAM
from helpers.sounds import encode

httpx2 = pytest.importorskip("httpx2", reason="needs the test group")
CLIENTS = 64
SECONDS = float(os.environ.get("LOAD_SECONDS", "120"))
LENGTHS = (0.7, 1.0, 1.4, 2.0, 2.7, 3.4)  # seconds: six length buckets
SPEECH = Path(__file__).parents[2] / "examples" / "audio"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")]


@dataclasses.dataclass
class Observations:
    """Responses that the clients received, and memory of the service."""

    statuses: dict[int, int] = dataclasses.field(default_factory=dict)
    seconds: list[float] = dataclasses.field(default_factory=list)
    error: float = 0.0
    memory: list[float] = dataclasses.field(default_factory=list)  # MiB


@pytest.fixture(scope="module")
def clips() -> list[bytes]:
    encoder = ecapa_jax.load()
    voices = [encoder.read(path) for path in sorted(SPEECH.glob("*.flac"))]
    kinds = ("WAV", "FLAC", "OGG")
    return [
        encode(voice[: int(16000 * length)], kinds[(row + column) % 3])
        for row, voice in enumerate(voices)
        for column, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def scores(clips) -> np.ndarray:
    rows = ecapa_jax.load().embed(clips)
    return np.asarray(ecapa_jax.score_matrix(rows, rows))


@pytest.fixture(params=[64, 24], ids=["room for all", "room for 24"])
def service(request) -> Iterator[tuple[str, int, int]]:
    """The address, process id and request limit of the service."""
    flags = ["--max-requests", str(request.param), "--max-seconds", "20", "--max-mb", "1", "--warm-up", "4"]
    command = [str(PROGRAM), "serve", "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            process.stderr.readline()
            url = process.stderr.readline().split()[0].rstrip("/")
            httpx2.get(f"{url}/healthz", timeout=600)  # responds after the warm-up
            yield url, process.pid, request.param
            process.send_signal(signal.SIGTERM)
            assert (process.stderr.read(), process.wait(60)) == ("", 0)
        finally:
            process.kill()


async def one_client(
    number: int, url: str, end: float, clips: list[bytes], scores: np.ndarray, seen: Observations
) -> None:
    pick = random.Random(number)
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        while time.monotonic() < end:
            a, b = pick.randrange(len(clips)), pick.randrange(len(clips))
            second = bytes(1_500_000) if pick.random() < 0.01 else clips[b]
            start = time.perf_counter()
            answer = await client.post("/v1/verify", files={"a": ("a", clips[a]), "b": ("b", second)})
            seen.statuses[answer.status_code] = seen.statuses.get(answer.status_code, 0) + 1
            if answer.status_code == 200:
                seen.seconds.append(time.perf_counter() - start)
                seen.error = max(seen.error, abs(answer.json()["score"] - float(scores[a, b])))
            elif answer.status_code == 429:
                await asyncio.sleep(pick.uniform(0.2, 0.6))
            else:
                assert second is not clips[b]


async def watch(pid: int, end: float, seen: Observations) -> None:
    while time.monotonic() < end:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        seen.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        await asyncio.sleep(0.5)


async def load(url: str, pid: int, clips: list[bytes], scores: np.ndarray) -> Observations:
    seen, end = Observations(), time.monotonic() + SECONDS
    clients = [one_client(number, url, end, clips, scores, seen) for number in range(CLIENTS)]
    await asyncio.gather(watch(pid, end, seen), *clients)
    return seen


def test_service_under_load(service, clips, scores, capsys) -> None:
    url, pid, room = service
    before = httpx2.get(f"{url}/healthz").json()
    seen = asyncio.run(load(url, pid, clips, scores))
    after = httpx2.get(f"{url}/healthz").json()
    batches, utterances = (after[name] - before[name] for name in ("batches", "utterances"))
    half = len(seen.memory) // 2
    settled, last = max(seen.memory[half // 2 : half]), max(seen.memory[half:])
    p50, p95 = np.percentile(seen.seconds, [50, 95])
    with capsys.disabled():
        print(
            f"\n{CLIENTS} clients, room for {room}, {SECONDS:g} s: {seen.statuses}, {len(seen.seconds) / SECONDS:.1f} "
            f"answers/s, p50 {p50:.2f} s, p95 {p95:.2f} s, {utterances / batches:.1f} utterances a batch, "
            f"memory {settled:.0f} then {last:.0f} MiB, score error {seen.error:.1e}"
        )
    assert set(seen.statuses) <= ({200, 413} if room >= CLIENTS else {200, 413, 429})
    assert seen.statuses[200] > CLIENTS
    assert 413 in seen.statuses
    assert seen.error <= 1e-5
    assert last <= 1.1 * settled
