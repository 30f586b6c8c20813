"""The order of a run: utterance, crop and speed of each example as a function of (seed, step, row) alone."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Int32, Int64

from ecapa_jax.errors import ConfigError
from ecapa_jax.train.config import DataConfig
from ecapa_jax.train.data.manifest import TrainingManifest


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of a batch.

    Attributes:
      utterance: row of the manifest.
      start: where the crop begins, as a share in [0, 1) of all possible positions.
      speed: index of the speed factor.
      noise: random number that selects the noise and its position, if a folder of noises is used.
    """

    utterance: int
    start: float
    speed: int
    noise: int


class Order:
    """The examples of a run.

    An epoch is a permutation of the utterances, or of the speakers with a random utterance of each. The rest that does
    not fill a batch is dropped, so that no batch spans two epochs, and a batch drawn by speaker has no speaker twice.

    Attributes:
      steps_per_epoch: number of batches in an epoch.
    """

    def __init__(self, config: DataConfig, manifest: TrainingManifest, seed: int):
        self._config, self._manifest, self._seed = config, manifest, seed
        self._by_speaker = config.sampler == "speakers"
        n_items = len(manifest.speakers) if self._by_speaker else len(manifest)
        self.steps_per_epoch = n_items // config.batch_size
        if not self.steps_per_epoch:
            kind = "speakers" if self._by_speaker else "utterances"
            raise ConfigError(f"the manifest has {n_items} {kind}: too few for data.batch_size {config.batch_size}")
        self._n_items = n_items
        self._permutation = functools.lru_cache(maxsize=4)(self._shuffle)

    def example(self, step: int, row: int) -> Example:
        """Returns row `row` of the global batch of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        item = int(self._permutation(epoch)[place * self._config.batch_size + row])
        draw = self._make_generator(1, step, row)
        utterance = item
        if self._by_speaker:
            own = self._utterances[item]
            utterance = int(own[draw.integers(len(own))])
        return Example(
            utterance=utterance,
            start=float(draw.random()),
            speed=self._draw_speed(draw),
            noise=int(draw.integers(2**62)),
        )

    def _draw_speed(self, draw: np.random.Generator) -> int:
        n_speeds, chance = len(self._config.speeds), self._config.speed_probability
        if chance < 0 or n_speeds == 1:
            return int(draw.integers(n_speeds))
        return int(draw.integers(1, n_speeds)) if draw.random() < chance else 0

    def draw_replacement(self, step: int, row: int, attempt: int) -> int:
        """Draws a replacement for an unreadable utterance, of the same speaker if examples are drawn by speaker."""
        draw = self._make_generator(2, step * 1000 + attempt, row)
        if self._by_speaker:
            own = self._utterances[self._manifest.labels[self.example(step, row).utterance]]
            return int(own[draw.integers(len(own))])
        return int(draw.integers(len(self._manifest)))

    @functools.cached_property
    def _utterances(self) -> list[Int64[np.ndarray, " own"]]:
        """Rows of the manifest for each speaker."""
        order = np.argsort(self._manifest.labels, kind="stable")
        edges = np.searchsorted(self._manifest.labels[order], np.arange(1, len(self._manifest.speakers)))
        return np.split(order, edges)

    def _shuffle(self, epoch: int) -> Int32[np.ndarray, " items"]:
        return self._make_generator(0, epoch, 0).permutation(self._n_items).astype(np.int32)

    def _make_generator(self, purpose: int, major: int, minor: int) -> np.random.Generator:
        """Makes a generator. Philox is counter-based, so that any draw can be made without the draws before it."""
        return np.random.Generator(np.random.Philox(key=[self._seed, purpose], counter=[0, 0, major, minor]))
