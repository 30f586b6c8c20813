"""Which utterances share a batch, and at which padded shape: few shapes, little padding, every utterance once.

Also how long an utterance must be.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32

from ecapa_jax.config import ModelConfig
from ecapa_jax.features import frames
from ecapa_jax.masks import bucket_length

Blocks: TypeAlias = Iterable[Float32[np.ndarray, " _"]]
"""Consecutive samples of one utterance."""

BATCH_SIZES = (16, 4, 1)
"""Batch buckets for one device. Any number of utterances splits into them without a padding row."""

SMALLEST_BUCKET_SECONDS = 1.0
MAX_BATCH_SECONDS = 160.0
"""Padded audio of one batch on one device: longer utterances go in smaller batches, still longer ones in chunks."""

GROUP_SECONDS = 6.0
"""Padded audio that a processor computes at a time: more leaves its caches."""


def minimum_samples(config: ModelConfig) -> int:
    """Fewest samples that an utterance may have: enough frames for its normalisation and its reflect padding."""
    return frames.minimum_samples(config.fbank, max(config.ecapa.minimum_frames, config.fbank.minimum_frames))


@dataclasses.dataclass(frozen=True)
class Batch:
    """One call of the compiled function: which utterances, at which padded shape; no samples: one, chunk by chunk."""

    indices: tuple[int, ...]
    rows: int
    samples: int


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The shapes that a model meets: lengths four per doubling, batches of `BATCH_SIZES` rows a device.

    Attributes:
      sample_rate: of the waveforms, Hz.
      n_devices: that share a batch.
      platform: of the devices, as JAX calls it.
    """

    sample_rate: int
    n_devices: int = 1
    platform: str = "cpu"

    def length(self, n_samples: int) -> int:
        """The padded length of an utterance."""
        return bucket_length(n_samples, int(SMALLEST_BUCKET_SECONDS * self.sample_rate) & ~3)

    def group(self, rows: int, samples: int) -> int:
        """Utterances of a batch that are computed at a time: a divisor of `rows`, all of them but on a processor."""
        if self.platform != "cpu" or self.n_devices > 1:
            return rows
        fitting = max(GROUP_SECONDS * self.sample_rate / samples, 1)
        return next(size for size in (16, 8, 4, 2, 1) if size <= fitting and rows % size == 0)

    def is_long(self, n_samples: int) -> bool:
        """Whether an utterance is too long to be computed in one piece."""
        return self.length(n_samples) > MAX_BATCH_SECONDS * self.sample_rate

    def lengths(self) -> Iterator[int]:
        """All padded lengths, without end."""
        length = self.length(0)
        while True:
            yield length
            length = self.length(length + 1)

    def rows(self, samples: int) -> list[int]:
        """Batch sizes of a padded length, largest first."""
        fitting = MAX_BATCH_SECONDS * self.sample_rate / samples
        return [size * self.n_devices for size in BATCH_SIZES if size == 1 or size <= fitting]

    def up_to(self, n_samples: int) -> list[Batch]:
        """An empty batch of every shape that utterances of up to `n_samples` can meet; none for long ones."""
        longest = self.length(n_samples)
        lengths = itertools.takewhile(lambda length: length <= longest and not self.is_long(length), self.lengths())
        return [Batch((), rows, length) for length in lengths for rows in self.rows(length)]

    def plan(self, lengths: Sequence[int]) -> list[Batch]:
        """Groups utterances by padded length, and each group into batches.

        Args:
          lengths: samples of each utterance.

        Returns:
          Batches that hold every index once, shortest first.
        """
        batches: list[Batch] = []
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        for samples, group in itertools.groupby(order, key=lambda index: self.length(lengths[index])):
            indices = list(group)
            for rows in self.rows(samples):
                while len(indices) >= rows or (indices and rows == self.n_devices):
                    batches.append(Batch(tuple(indices[:rows]), rows, samples))
                    del indices[:rows]
        return batches

    def stream(self, waveforms: Iterable[Float32[np.ndarray, " _"] | Blocks]) -> Iterator[tuple[Batch, list[Any]]]:
        """Full batches of a stream as soon as there are, the rest at its end; at once, alone, the blocks of a long one.

        Args:
          waveforms: whole, or in blocks, which counts as long.
        """
        waiting: dict[int, dict[int, np.ndarray]] = collections.defaultdict(dict)  # by padded length, by position
        for index, waveform in enumerate(waveforms):
            if not isinstance(waveform, np.ndarray):
                yield Batch((index,), 1, 0), [waveform]
                continue
            if self.is_long(len(waveform)):
                yield Batch((index,), 1, 0), [[waveform]]
                continue
            samples = self.length(len(waveform))
            waiting[samples][index] = waveform
            if len(waiting[samples]) == self.rows(samples)[0]:
                group = waiting.pop(samples)
                yield Batch(tuple(group), len(group), samples), list(group.values())
        for samples in sorted(waiting):
            indices, rest = zip(*waiting.pop(samples).items(), strict=True)
            for batch in self.plan([len(waveform) for waveform in rest]):
                positions = tuple(indices[at] for at in batch.indices)
                yield dataclasses.replace(batch, indices=positions), [rest[at] for at in batch.indices]
