"""Groups utterances into batches of few padded shapes with little padding; says how long an utterance must be."""

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
"""Rows of a batch on one device. Any number of utterances can be split into such batches without a row of padding."""

SMALLEST_BUCKET_SECONDS = 1.0
MAX_BATCH_SECONDS = 160.0
"""Most padded audio that one batch may hold on one device. Longer utterances make smaller batches; an utterance that is
itself longer is embedded chunk by chunk."""

GROUP_SECONDS = 6.0
"""Padded audio that a CPU computes at a time: more does not fit its caches."""


def minimum_samples(config: ModelConfig) -> int:
    """Returns the fewest samples that an utterance may have, so that it can be normalised and reflect-padded."""
    return frames.minimum_samples(config.fbank, max(config.ecapa.minimum_frames, config.fbank.minimum_frames))


@dataclasses.dataclass(frozen=True)
class Batch:
    """One call of the compiled function.

    Attributes:
      indices: positions of the utterances.
      rows: rows of the batch; rows beyond the utterances are padding.
      samples: padded length; 0 marks one long utterance, which is embedded chunk by chunk.
    """

    indices: tuple[int, ...]
    rows: int
    samples: int


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The batch shapes of a model: four lengths per doubling, and batches of `BATCH_SIZES` rows per device.

    Attributes:
      sample_rate: sample rate of the waveforms, Hz.
      n_devices: number of devices that share a batch.
      platform: platform of the devices, as JAX names it.
    """

    sample_rate: int
    n_devices: int = 1
    platform: str = "cpu"

    def length(self, n_samples: int) -> int:
        """Returns the padded length of an utterance."""
        return bucket_length(n_samples, int(SMALLEST_BUCKET_SECONDS * self.sample_rate) & ~3)

    def group(self, rows: int, samples: int) -> int:
        """Returns how many utterances of a batch are computed at a time: a divisor of `rows` on a CPU, else all."""
        if self.platform != "cpu" or self.n_devices > 1:
            return rows
        fitting = max(GROUP_SECONDS * self.sample_rate / samples, 1)
        return next(size for size in (16, 8, 4, 2, 1) if size <= fitting and rows % size == 0)

    def is_long(self, n_samples: int) -> bool:
        """Whether an utterance is too long to be computed in one piece."""
        return self.length(n_samples) > MAX_BATCH_SECONDS * self.sample_rate

    def lengths(self) -> Iterator[int]:
        """Yields all padded lengths in ascending order, without end."""
        length = self.length(0)
        while True:
            yield length
            length = self.length(length + 1)

    def rows(self, samples: int) -> list[int]:
        """Returns the batch sizes for a padded length, largest first."""
        fitting = MAX_BATCH_SECONDS * self.sample_rate / samples
        return [size * self.n_devices for size in BATCH_SIZES if size == 1 or size <= fitting]

    def up_to(self, n_samples: int) -> list[Batch]:
        """Returns an empty batch of every shape that utterances of up to `n_samples` can have; none for long ones."""
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
        """Yields each batch of a stream as soon as it is full, a long utterance at once and alone, the rest at the end.

        Args:
          waveforms: whole waveforms, or blocks of a waveform, which then counts as long.
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
