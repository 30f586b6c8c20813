"""Batches for the step, which threads of Grain read, crop and stack while the device computes."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int16, Int32

from ecapa_jax.audio.segments import change_speed, read_segment
from ecapa_jax.errors import AudioError
from ecapa_jax.train.augment import MUSIC, NOISE
from ecapa_jax.train.config import AugmentConfig, DataConfig
from ecapa_jax.train.data.manifest import UNNAMED, TrainingManifest
from ecapa_jax.train.data.order import Example, Order

ATTEMPTS = 20
"""Number of replacements tried for an unreadable utterance."""

HostBatch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of each global batch that this process reads, in order."""

    places: tuple[int, ...]

    @classmethod
    def span(cls, first: int, number: int) -> Rows:
        """Makes the rows from `first` up to `first + number`."""
        return cls(tuple(range(first, first + number)))

    @property
    def number(self) -> int:
        """Number of rows."""
        return len(self.places)


@runtime_checkable
class Targets(Protocol):
    """A source of target embeddings, such as the table of a teacher."""

    def target(self, utterance: int, speed: int) -> Float32[np.ndarray, " embedding"]:
        """Returns the embedding of an utterance of the manifest at one of the speeds."""


class Loader:
    """Reads examples by their position in the run, with a cache of decoded audio.

    Indexing by `place` gives the example of local row `place % number` in step `place // number`; Grain batches them.

    Attributes:
      problems: for each unreadable file, the reason why its utterance was replaced.
    """

    def __init__(
        self,
        data: DataConfig,
        augment: AugmentConfig,
        manifest: TrainingManifest,
        order: Order,
        rows: Rows,
        targets: Targets | None = None,
    ):
        self._targets = targets
        self._data, self._manifest, self._order, self._rows = data, manifest, order, rows
        self._crop = round(data.crop_seconds * manifest.rate)
        self._noises = Noises(augment, self._crop, manifest.rate) if augment.musan else None
        self._cache = AudioCache(round(data.cache_gigabytes * 2**30))
        self._shards: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.problems: dict[str, str] = {}

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, place: int) -> HostBatch:
        """Reads one example; its arrays have no batch axis."""
        step, local = divmod(int(place), self._rows.number)
        row = self._rows.places[local]
        example = self._order.example(step, row)
        waveform, utterance = self._read_or_replace(step, row, example)
        label = self._manifest.labels[utterance]
        if label != UNNAMED and self._data.speed_speakers:
            label += example.speed * len(self._manifest.speakers)
        filled = self._fill(waveform)
        made = {
            "waveforms": filled,
            "lengths": np.asarray(
                min(len(waveform), self._crop) if self._data.short == "zeros" else self._crop, np.int32
            ),
            "labels": np.asarray(label, np.int32),
            "utterances": np.asarray(utterance, np.int32),
        }
        if self._targets is not None:
            made["targets"] = self._targets.target(utterance, example.speed)
        if self._noises is not None:
            made["noise"], made["noise_kind"] = self._noises.crop(example.noise)
        return made

    def _read_or_replace(self, step: int, row: int, example: Example) -> tuple[Int16[np.ndarray, " samples"], int]:
        """Reads the crop of an example, or of the first readable replacement."""
        utterance = example.utterance
        for attempt in range(ATTEMPTS):
            try:
                return self._read(utterance, example), utterance
            except AudioError as error:
                self.problems[self._manifest.files[utterance]] = str(error)
                utterance = self._order.draw_replacement(step, row, attempt)
        raise AudioError(
            f"{ATTEMPTS} consecutive utterances can't be read: {self.problems[self._manifest.files[utterance]]}"
        )

    def _read(self, utterance: int, example: Example) -> Int16[np.ndarray, " samples"]:
        manifest, factor = self._manifest, self._data.speeds[example.speed]
        needed = math.ceil(self._crop * factor)
        total = int(manifest.samples[utterance])
        start = int(manifest.starts[utterance]) + int(example.start * max(total - needed + 1, 1))
        samples = self._read_samples(utterance, start, min(needed, total))
        return change_speed(samples, factor)[: self._crop]

    def _read_samples(self, utterance: int, start: int, number: int) -> Int16[np.ndarray, " samples"]:
        name, index = self._manifest.files[utterance], int(self._manifest.indices[utterance])
        source = self._read_record(name, index) if index >= 0 else name
        if not self._cache.capacity:
            samples = read_segment(source, start, number, rate=self._manifest.rate)
        else:
            first, total = int(self._manifest.starts[utterance]), int(self._manifest.samples[utterance])
            whole = self._cache.get(utterance)
            if whole is None:
                whole = self._cache.put(utterance, read_segment(source, first, total, rate=self._manifest.rate))
            samples = whole[start - first : start - first + number]
        if len(samples) < number:
            raise AudioError(f"{name}: has changed since the manifest was made: it is shorter; run prepare again")
        return samples

    def _read_record(self, shard: str, index: int) -> bytes:
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:  # readers are not thread-safe
            if shard not in self._shards:
                try:
                    self._shards[shard] = ArrayRecordReader(shard)
                except Exception as error:  # errors of the C++ reader have no common type
                    raise AudioError(f"{shard}: can't be opened ({error}); run prepare again") from error
            return self._shards[shard].read([index])[0]

    def _fill(self, waveform: Int16[np.ndarray, " samples"]) -> Int16[np.ndarray, " crop"]:
        if len(waveform) >= self._crop:
            return waveform[: self._crop]
        if self._data.short == "repeat":
            return np.resize(waveform, self._crop)
        return np.pad(waveform, (0, self._crop - len(waveform)))


class AudioCache:
    """A thread-safe cache of decoded utterances that drops the least recently used first."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._held = 0
        self._entries: OrderedDict[int, Int16[np.ndarray, " samples"]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int) -> Int16[np.ndarray, " samples"] | None:
        """Returns the samples if they are in the cache."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: int, samples: Int16[np.ndarray, " samples"]) -> Int16[np.ndarray, " samples"]:
        """Adds the samples to the cache and returns them."""
        with self._lock:
            if key not in self._entries:
                self._entries[key] = samples
                self._held += samples.nbytes
            while self._held > self.capacity and len(self._entries) > 1:
                self._held -= self._entries.popitem(last=False)[1].nbytes
        return samples


class Noises:
    """Crops noises from the recordings in a folder with MUSAN's layout."""

    def __init__(self, config: AugmentConfig, crop: int, rate: int):
        folder, kinds = Path(config.musan), ((NOISE, "noise"), (MUSIC, "music"))
        self._music_share = config.music / max(config.noise + config.music, 1e-9)
        self._files = {kind: sorted(folder.glob(f"{name}/**/*.*")) for kind, name in kinds}
        self._crop, self._rate = crop, rate
        self._cache = AudioCache(2**30)
        if not self._files[NOISE]:
            raise AudioError(f"{folder} holds no noise/ folder with sound files, as MUSAN has it: check augment.musan")

    def crop(self, number: int) -> tuple[Int16[np.ndarray, " crop"], Int32[np.ndarray, ""]]:
        """Returns the crop that a random number selects, and its kind."""
        draw = np.random.Generator(np.random.Philox(number))
        kind = MUSIC if draw.random() < self._music_share and self._files[MUSIC] else NOISE
        which = int(draw.integers(len(self._files[kind])))
        key = 2 * which + kind
        whole = self._cache.get(key)
        if whole is None:
            whole = self._cache.put(key, read_segment(self._files[kind][which], 0, 2**31, rate=self._rate))
        start = int(draw.integers(max(len(whole) - self._crop, 0) + 1))
        return np.resize(whole[start : start + self._crop], self._crop), np.asarray(kind, np.int32)


class Batches:
    """Iterates over batches on the host from a step on; threads read ahead.

    Attributes:
      waited: seconds that the consumer has waited for batches, from which starvation is computed.
    """

    def __init__(self, loader: Loader, rows: Rows, data: DataConfig, first_step: int):
        import grain

        options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch * rows.number)
        places = grain.MapDataset.source(loader)[first_step * rows.number :]
        self._iterator: Iterator[HostBatch] = iter(places.to_iter_dataset(options).batch(rows.number))
        self.waited = 0.0

    def __next__(self) -> HostBatch:
        """Returns the batch of the next step."""
        began = time.perf_counter()
        batch = next(self._iterator)
        self.waited += time.perf_counter() - began
        return batch
