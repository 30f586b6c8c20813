"""Waveforms in, embeddings out: bucketed batches through one compiled function, on one device or several."""

from __future__ import annotations

import collections
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32

from ecapa_jax.audio.load import LongAudio
from ecapa_jax.batching import Batch, Blocks, Buckets
from ecapa_jax.config import ModelConfig, Variables, to_dict
from ecapa_jax.folding import fold
from ecapa_jax.runtime import machine
from ecapa_jax.runtime.programs import Programs

Dtype = Literal["float32", "bfloat16", "auto"]


class Embedder:
    """The network and its front end on devices, with the programs made for it.

    Attributes:
      config: front end and network.
      dtype: compute dtype, float32 or bfloat16.
      buckets: the shapes that are compiled when met.
      devices: over which batches are spread.
      sharding: of a batch's rows.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: Variables,
        devices: Sequence[jax.Device] | None,
        dtype: Dtype,
        programs: Path | None,
    ):
        self.config = config
        self.devices = list(devices or jax.local_devices())
        self.dtype = machine.fastest_dtype(self.devices[0]) if dtype == "auto" else dtype
        self.buckets = Buckets(config.fbank.sample_rate, len(self.devices), self.devices[0].platform)
        mesh = Mesh(np.asarray(self.devices), ("data",))
        self.sharding, self._everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
        self.variables = variables
        self.programs = Programs(self._traced, json.dumps([to_dict(config), self.dtype]), programs)
        self._real = self._padded = 0

    @property
    def variables(self) -> Variables:
        """Weights and statistics as given, on every device."""
        return self._variables

    @variables.setter
    def variables(self, variables: Variables) -> None:
        self._variables = jax.device_put(variables, self._everywhere)
        self._folded = jax.device_put(fold(self.config, self._variables, self.dtype), self._everywhere)
        self.__dict__.pop("fingerprint", None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """As `SpeakerEncoder.fingerprint`."""
        digest = hashlib.sha256(json.dumps(to_dict(self.config), sort_keys=True).encode())
        leaves = {
            jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables)
        }
        for name, leaf in sorted(leaves.items()):
            digest.update(f"{name}{leaf.shape}".encode())
            digest.update(np.asarray(leaf, np.float32).tobytes())
        if self.dtype != "float32":
            digest.update(self.dtype.encode())
        return digest.hexdigest()

    @property
    def padding_waste(self) -> float:
        """As `SpeakerEncoder.padding_waste`."""
        return 1 - self._real / self._padded if self._padded else 0.0

    def stream(
        self, waveforms: Iterable[Float32[np.ndarray, " _"] | LongAudio]
    ) -> Iterator[tuple[tuple[int, ...], Float32[np.ndarray, "rows embedding"]]]:
        """As `SpeakerEncoder.embed_stream`."""
        running: collections.deque[tuple[tuple[int, ...], jax.Array | np.ndarray]] = collections.deque()
        for batch, rows in self.buckets.stream(waveforms):
            embeddings = self.dispatch(batch, rows) if batch.samples else self.embed_long(rows[0])
            running.append((batch.indices, embeddings))
            if len(running) > 1:  # one computes while the next is read
                yield _taken(*running.popleft())
        for done in running:
            yield _taken(*done)

    def dispatch(self, batch: Batch, waveforms: Sequence[np.ndarray]) -> Float32[jax.Array, "rows embedding"]:
        """Embeds one batch, without waiting for the device."""
        padded = np.zeros((batch.rows, batch.samples), np.float32)
        lengths = np.zeros(batch.rows, np.int32)
        for row, waveform in enumerate(waveforms):
            padded[row, : len(waveform)] = waveform
            lengths[row] = len(waveform)
        self._real += int(lengths.sum())
        self._padded += padded.size
        return self.run(*jax.device_put((padded, lengths), self.sharding))

    def run(
        self, waveforms: Float32[jax.Array, "rows samples"], lengths: jax.Array
    ) -> Float32[jax.Array, "rows embedding"]:
        """The compiled function, on what is already placed on the devices."""
        return self.programs(self._folded, waveforms, lengths)

    def embed_long(self, blocks: Blocks) -> Float32[np.ndarray, "1 embedding"]:
        """Embeds what is too long for a batch, chunk by chunk."""
        from ecapa_jax.long import passes

        place = functools.partial(jax.device_put, device=self.sharding)
        return passes.embed(self.config, self._folded, blocks, rows=self.buckets.n_devices, place=place)[None]

    def fetch(self, lengths: Sequence[int]) -> None:
        """Reads the kept programs, if any, of the batches that waveforms of these lengths will make."""
        self.programs.fetch(self._arguments(batch) for batch in self.buckets.plan(lengths))

    def _arguments(self, batch: Batch) -> tuple[Variables, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """What `run` calls the compiled function with; of the waveforms the shapes."""
        waveforms = jax.ShapeDtypeStruct((batch.rows, batch.samples), np.float32, sharding=self.sharding)
        lengths = jax.ShapeDtypeStruct((batch.rows,), np.int32, sharding=self.sharding)
        return self._folded, waveforms, lengths

    def _traced(self, variables: Variables, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
        from ecapa_jax.functional import embed_in_groups  # takes flax, which programs of an earlier process do without

        return embed_in_groups(self.config, variables, waveforms, lengths, self.buckets.group(*waveforms.shape))


def _taken(
    indices: tuple[int, ...], embeddings: jax.Array | np.ndarray
) -> tuple[tuple[int, ...], Float32[np.ndarray, "rows embedding"]]:
    """The embeddings on the host, without those of rows that only fill the batch."""
    return indices, np.asarray(embeddings)[: len(indices)]
