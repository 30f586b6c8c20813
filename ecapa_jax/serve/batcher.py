"""Micro-batching: recordings of concurrent requests share the encoder's batches."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading

import numpy as np
from jaxtyping import Float32

from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import Stopped

Rows = Float32[np.ndarray, " embedding"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    waveform: Float32[np.ndarray, " samples"]
    done: concurrent.futures.Future[Rows]


class Batcher:
    """Embeds recordings in one thread: the oldest that waits, together with all that fit into its batch.

    It never waits for more recordings. While one batch is computed the next one collects, so batches grow with the
    load, and a single request is answered at once.

    Attributes:
      batches, utterances: numbers computed so far.
    """

    def __init__(self, encoder: SpeakerEncoder):
        self.batches = 0
        self.utterances = 0
        self._encoder = encoder
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    async def embed(self, waveform: Float32[np.ndarray, " samples"]) -> Rows:
        """Returns the embedding of a waveform, which has the form that `SpeakerEncoder.read` returns.

        Raises:
          Stopped: the service is shutting down.
        """
        job = _Job(waveform, concurrent.futures.Future())
        with self._changed:
            if self._closed:
                raise Stopped("the service is shutting down; try again")
            self._jobs.append(job)
            self._changed.notify()
        return await asyncio.wrap_future(job.done)

    def close(self) -> None:
        """Embeds the recordings that still wait, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            try:
                rows = self._encoder.embed([job.waveform for job in jobs])
            except Exception as error:
                for job in jobs:
                    job.done.set_exception(error)
            else:
                self.batches += 1
                self.utterances += len(jobs)
                for job, row in zip(jobs, rows, strict=True):
                    job.done.set_result(row)
            del jobs  # frees the memory before the wait for the next batch

    def _next(self) -> list[_Job]:
        """Returns the batch with the oldest job; an empty list once the batcher is closed and all jobs are done."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                plan = self._encoder.buckets.plan([len(job.waveform) for job in self._jobs])
                chosen = next((set(batch.indices) for batch in plan if 0 in batch.indices), set())
                jobs = [job for index, job in enumerate(self._jobs) if index in chosen]
                self._jobs = [job for index, job in enumerate(self._jobs) if index not in chosen]
            if not jobs:
                return []
            if jobs := [job for job in jobs if job.done.set_running_or_notify_cancel()]:
                return jobs
