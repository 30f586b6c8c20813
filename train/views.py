"""Writes augmented views of utterances as sound files, so that any teacher can hear what the student hears."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int16

from ecapa_jax.audio.segments import to_flac, to_int16
from ecapa_jax.errors import ConfigError, TrainingError
from ecapa_jax.train.augment import augment_step
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.data.manifest import (
    UNNAMED,
    TrainingManifest,
    check_installed,
    read_manifest,
    read_rows,
    write_manifest,
)
from ecapa_jax.train.data.order import Order
from ecapa_jax.train.data.pipeline import Batches, Loader, Rows
from ecapa_jax.train.data.prepare import MANIFEST
from ecapa_jax.train.rooms import make_room_bank

PART_STEPS = 16
"""Number of batches whose files share a folder; a list beside the folder says that it is complete."""


@dataclasses.dataclass(frozen=True)
class Views:
    """Summary of what `write_views` wrote.

    Attributes:
      manifest: the Parquet file that training reads.
      views: number of files.
      utterances: number of different utterances in the views.
      hours: total duration in hours.
    """

    manifest: Path
    views: int
    utterances: int
    hours: float


def write_views(
    config: TrainConfig, output: Path, number: int, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Views:
    """Writes the first examples of a training run of this configuration, augmented, each as a FLAC file.

    A view is a crop of an utterance at one of `data.speeds`, augmented as `augment` says. It equals what `train` makes
    with the same seed, step and position in the batch. If a call is killed, the same call continues it.

    Args:
      config: the run; only `data`, `augment`, `run.seed` and the sample rate of the model are used.
      output: folder to make; its `manifest.parquet` names each view by `id` and `variant`.
      number: number of views to write, rounded up to whole batches.
      progress: called with the number of views written and their total.

    Raises:
      TrainingError: the output is already complete.
      ConfigError, AudioError: a file that the configuration names can't be used.
    """
    check_installed("pyarrow", "grain")
    if number < 1:
        raise ConfigError(f"the number of views is {number}; it must be positive")
    if (output / MANIFEST).exists():
        raise TrainingError(f"{output / MANIFEST} exists: choose another output, or remove it")
    manifest = read_manifest(config.data.manifest)
    writer = _Writer(config, manifest, output)
    n_steps = -(-number // config.data.batch_size)
    rows: list[dict[str, Any]] = []
    for first in range(0, n_steps, PART_STEPS):
        rows += writer.write_part(first, min(first + PART_STEPS, n_steps))
        progress(len(rows), n_steps * config.data.batch_size)
    temporary = output / f".{MANIFEST}.partial"
    write_manifest(temporary, rows, manifest.rate)
    temporary.replace(output / MANIFEST)
    hours = sum(row["seconds"] for row in rows) / 3600
    return Views(output / MANIFEST, len(rows), len({row["id"] for row in rows}), hours)


class _Writer:
    """Makes batches as training does and writes them as files."""

    def __init__(self, config: TrainConfig, manifest: TrainingManifest, output: Path):
        self._config, self._manifest, self._output = config, manifest, output
        self._rate = config.model.fbank.sample_rate
        if manifest.rate != self._rate:
            raise TrainingError(f"{config.data.manifest} is at {manifest.rate} Hz, the model at {self._rate} Hz")
        self._order = Order(config.data, manifest, config.run.seed)
        self._banks = jax.device_put(make_room_bank(config.augment, manifest.rate, config.run.seed))
        self._augment = jax.jit(functools.partial(augment_step, config.augment, self._rate, config.run.seed))
        self._batches: Batches | None = None

    def write_part(self, first: int, last: int) -> list[dict[str, Any]]:
        """Writes the files of the steps from `first` up to `last`, unless they exist, and returns their rows."""
        complete_list = self._output / "audio" / f"{first:06d}.parquet"
        if complete_list.exists():
            self._batches = None
            return read_rows(complete_list)
        folder = complete_list.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for step in range(first, last) for row in self._write_step(step, first, folder)]
        temporary = complete_list.with_suffix(".partial")
        write_manifest(temporary, rows, self._rate)
        temporary.replace(complete_list)
        return rows

    def _write_step(self, step: int, first: int, folder: Path) -> list[dict[str, Any]]:
        size = self._config.data.batch_size
        if self._batches is None:
            loader = Loader(self._config.data, self._config.augment, self._manifest, self._order, Rows.span(0, size))
            self._batches = Batches(loader, Rows.span(0, size), self._config.data, first)
        batch = next(self._batches)
        waveforms = np.asarray(self._augment(self._banks, jnp.int32(step), batch))
        views = zip(waveforms, batch["utterances"], batch["lengths"], strict=True)
        return [
            self._write_view(folder, step * size + place, to_int16(waveform[:length]), int(utterance))
            for place, (waveform, utterance, length) in enumerate(views)
        ]

    def _write_view(
        self, folder: Path, place: int, samples: Int16[np.ndarray, " samples"], utterance: int
    ) -> dict[str, Any]:
        path = folder / f"{place:08d}.flac"
        path.write_bytes(to_flac(samples, self._rate))
        label = self._manifest.labels[utterance]
        return {
            "id": self._manifest.ids[utterance],
            "variant": f"{place:08d}",
            "path": path.relative_to(self._output).as_posix(),
            "start": 0,
            "samples": len(samples),
            "speaker": None if label == UNNAMED else self._manifest.speakers[label],
            "seconds": len(samples) / self._rate,
            "rate": self._rate,
            "sha256": hashlib.sha256(samples.tobytes()).hexdigest(),
        }
