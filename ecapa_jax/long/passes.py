"""Embeds recordings of any length: the result is that of `embed` on the whole, with the memory of one chunk.

The recording is read once, as a stream. Its log energies are kept in memory, and from half an hour on in a temporary
file (115 MB per hour with 80 bands, which is half the size of the samples). The network then runs over them once for
each of its global reductions, every time from the first layer on. Multiplications per frame of the published network at
C = 1024, where one pass of `embed` takes 18.0 million:

| pass | computes | millions |
|---|---|--:|
| mean of block 0, 1, 2 | stem, blocks up to it | 2.9, 5.3, 7.7 |
| context | stem, blocks, MFA | 17.2 |
| pooling | everything | 18.0 |

In total this is 2.84 times the work of `embed`, or 2.95 times with the halos of 30 s chunks. Storing the outputs of the
blocks and of the MFA would reduce it to 1.0, but would take 24 kB per frame: 8.6 GB per hour.
"""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Float64

from ecapa_jax.batching import minimum_samples
from ecapa_jax.config import FbankConfig, ModelConfig, Variables
from ecapa_jax.errors import AudioError, EcapaError
from ecapa_jax.features.fbank import deviation, dynamic_range
from ecapa_jax.features.frames import frame_count, seen_count
from ecapa_jax.long import chunks
from ecapa_jax.long.chunks import ChunkBatch
from ecapa_jax.long.moments import Moments, needs_context

CHUNK_SECONDS = 30.0
"""Length of a chunk. Its halo adds 4 %, and it takes no more memory than a batch of short recordings."""

_IN_MEMORY = 64 << 20  # bytes

_log_energies = jax.jit(chunks.log_energies, static_argnums=0)
_block_mean = jax.jit(chunks.block_mean, static_argnums=0)
_context = jax.jit(chunks.context, static_argnums=0)
_pooling = jax.jit(chunks.pooling, static_argnums=0)
_finish = jax.jit(chunks.finish, static_argnums=0)

Place = Callable[[Any], Any]


def embed(
    config: ModelConfig,
    variables: Variables,
    blocks: Iterable[Float32[np.ndarray, " _"]],
    *,
    chunk_frames: int | None = None,
    rows: int = 1,
    place: Place = jax.device_put,
) -> Float32[np.ndarray, " embedding"]:
    """Embeds one recording that arrives in blocks. Up to rounding, the result is `functional.embed` of the whole.

    Sums over chunks are kept in float64. The compiled shapes depend only on `chunk_frames` and `rows`.

    Args:
      config: the model.
      variables: as for `functional.embed`, on any devices.
      blocks: consecutive samples in [-1, 1] at the rate of the model, in blocks of any length; read once.
      chunk_frames: frames of a chunk; None means `CHUNK_SECONDS`.
      rows: number of chunks that are computed together.
      place: puts a tree of arrays [rows, ...] on the devices.

    Raises:
      AudioError: all blocks together are shorter than `functional.minimum_samples(config)`.
      EcapaError: the temporary file can't be written.
    """
    chunk_frames = chunk_frames or round(CHUNK_SECONDS * config.fbank.sample_rate / config.fbank.frame_shift)
    with _Energies(config.fbank.n_mels) as energies:
        _store_energies(energies, config, variables, blocks, chunk_frames, rows, place)
        return _Passes(config, variables, energies, chunk_frames, rows, place).embedding()


class _Energies:
    """Log energies [frames, mels]: up to half an hour in memory, then in a nameless file that vanishes when closed."""

    def __init__(self, n_mels: int):
        self.n_mels, self.n_frames = n_mels, 0
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, prefix="ecapa-jax-")  # noqa: SIM115

    def __enter__(self) -> _Energies:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, frames: Float32[np.ndarray, "frames mels"]) -> None:
        try:
            self._file.write(np.ascontiguousarray(frames).data)
        except OSError as error:
            raise EcapaError(
                f"can't write the temporary file of a long recording ({error.strerror}): it takes 115 MB per hour of "
                f"audio in {tempfile.gettempdir()}; make room there, or set TMPDIR"
            ) from error
        self.n_frames += len(frames)

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "frames mels"]:
        row = 4 * self.n_mels
        self._file.seek(start * row)
        content = self._file.read((min(stop, self.n_frames) - start) * row)
        return np.frombuffer(content, np.float32).reshape(-1, self.n_mels)


class _Span(NamedTuple):
    """A stretch of samples.

    Attributes:
      samples: the samples, padded to the same size for all spans.
      length: number of real samples.
      start, stop: which of its frames belong to its chunk; the others are only context.
    """

    samples: Float32[np.ndarray, " window"]
    length: int
    start: int
    stop: int


def _store_energies(
    energies: _Energies,
    config: ModelConfig,
    variables: Variables,
    blocks: Iterable[Float32[np.ndarray, " _"]],
    chunk_frames: int,
    rows: int,
    place: Place,
) -> None:
    """Computes the log energies of all blocks and stores them."""

    def append(spans: list[_Span], result: Any) -> None:
        for span, frames in zip(spans, np.asarray(result), strict=False):
            energies.append(frames[span.start : span.stop])

    constants = {"constants": variables["constants"]}
    waiting: collections.deque[tuple[list[_Span], Any]] = collections.deque()
    for spans in _group(_cut_spans(config, blocks, chunk_frames), rows):
        samples = _stack([span.samples for span in spans], rows)
        lengths = _stack([np.int32(span.length) for span in spans], rows)
        waiting.append((spans, _log_energies(config, constants, *place((samples, lengths)))))
        if len(waiting) > 1:  # the device computes one group while the host decodes the next
            append(*waiting.popleft())
    for spans, result in waiting:
        append(spans, result)


def _cut_spans(config: ModelConfig, blocks: Iterable[Float32[np.ndarray, " _"]], chunk_frames: int) -> Iterator[_Span]:
    """Yields spans of samples that contain a chunk and, on both sides, the samples that its frames need."""
    shift = config.fbank.frame_shift
    side = -(-2 * config.fbank.fft_size // shift) + 1
    size = (chunk_frames + 2 * side) * shift
    stream, held, position, first = iter(blocks), np.zeros(0, np.float32), 0, 0
    while True:
        start = max(first - side, 0)
        held, position = held[start * shift - position :], start * shift
        held, ended = _refill(held, stream, size)
        stop = first + chunk_frames
        if ended:
            n_frames = _count_frames(config, position + len(held))
            stop = min(stop, n_frames)
        if stop > first:
            window = held[:size]
            yield _Span(np.pad(window, (0, size - len(window))), len(window), first - start, stop - start)
        if ended and stop == n_frames:
            return
        first = stop


def _count_frames(config: ModelConfig, n_samples: int) -> int:
    """Returns the number of frames of the recording, or raises an AudioError if it is too short."""
    if n_samples < minimum_samples(config):
        raise AudioError(f"{n_samples} samples are too short: this model needs {minimum_samples(config)}")
    return frame_count(config.fbank, n_samples)


def _refill(
    held: Float32[np.ndarray, " _"], stream: Iterator[Float32[np.ndarray, " _"]], size: int
) -> tuple[Float32[np.ndarray, " _"], bool]:
    """Reads until at least `size` samples are there; also returns whether the stream has ended."""
    parts, n_samples, ended = [held] if len(held) else [], len(held), False
    while n_samples < size and not ended:
        block = next(stream, None)
        ended = block is None
        if block is not None:
            parts.append(block)
            n_samples += len(block)
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.float32), *parts]), ended


class _Passes:
    """Runs the passes over the log energies of a recording."""

    def __init__(
        self,
        config: ModelConfig,
        variables: Variables,
        energies: _Energies,
        chunk_frames: int,
        rows: int,
        place: Place,
    ):
        self.config, self.variables, self.energies = config, variables, energies
        self.chunk_frames, self.rows, self.place = chunk_frames, rows, place
        self.floor, self.mean, self.scale = _compute_normalisation(config.fbank, energies, chunk_frames)

    def embedding(self) -> Float32[np.ndarray, " embedding"]:
        """Runs the network, one pass for each of its global reductions."""
        network = self.config.ecapa
        gate_means: tuple[jax.Array, ...] = ()
        for block in range(network.n_blocks):
            reach = chunks.halo(network, block + 1)
            gate_means += (self._run_pass(_block_mean, reach, gate_means).mean,)
        reach = chunks.halo(network, network.n_blocks, mfa=True)
        merged = self._run_pass(_context, reach, gate_means) if needs_context(network) else None
        if network.pooling not in ("mean", "std", "mean_std"):
            merged = self._run_pass(_pooling, reach, gate_means, merged)
        count = np.full(self.rows, self.energies.n_frames, np.int32)
        return np.asarray(_finish(self.config, self.variables, *self.place((merged, count))))[0]

    def _run_pass(self, function: Any, halo: int, *others: Any) -> Moments:
        """Computes the moments of the whole recording, float32 [rows, channels], by one pass over its chunks."""
        running, placed = _RunningMoments(), self.place(others)
        waiting: collections.deque[tuple[int, Any]] = collections.deque()
        for windows in _group(self._chunks(halo), self.rows):
            stacked = ChunkBatch(*(_stack(list(field), self.rows) for field in zip(*windows, strict=True)))
            waiting.append((len(windows), function(self.config, self.variables, self.place(stacked), *placed)))
            if len(waiting) > 1:
                running.add(*waiting.popleft())
        for n_rows, result in waiting:
            running.add(n_rows, result)
        return Moments(*(jnp.tile(jnp.asarray(value, jnp.float32), (self.rows, 1)) for value in running.moments))

    def _chunks(self, halo: int) -> Iterator[ChunkBatch]:
        n_frames, size = self.energies.n_frames, self.chunk_frames + 2 * halo
        n_seen = seen_count(self.config.fbank, n_frames)
        for first in range(0, n_frames, self.chunk_frames):
            start = max(first - halo, 0)
            frames = self.energies.read(start, start + size)
            yield ChunkBatch(
                frames=np.pad(frames, ((0, size - len(frames)), (0, 0))),
                real=np.asarray(len(frames), np.int32),
                seen=np.asarray(min(size, n_seen - start), np.int32),
                start=np.asarray(first - start, np.int32),
                stop=np.asarray(min(first + self.chunk_frames, n_frames) - start, np.int32),
                floor=np.asarray(self.floor, np.float32),
                mean=self.mean,
                scale=self.scale,
                n_frames=np.asarray(n_frames, np.int32),
            )


class _RunningMoments:
    """Moments of the chunks so far, merged in float64.

    Reference: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", equation 1.5b.
    """

    def __init__(self) -> None:
        self.moments: tuple[Float64[np.ndarray, " channels"], ...] = ()

    def add(self, n_rows: int, added: Moments) -> None:
        """Adds the first rows."""
        wide = [np.asarray(value, np.float64) for value in added]
        for row in range(n_rows):
            new = tuple(value[row] for value in wide)
            self.moments = _merge(self.moments, new) if self.moments else new


def _merge(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    log_weight = np.logaddexp(a[0], b[0])
    share = np.exp(b[0] - log_weight)
    gap = b[1] - a[1]
    return log_weight, a[1] + share * gap, (1 - share) * a[2] + share * b[2] + share * (1 - share) * gap * gap


def _compute_normalisation(
    config: FbankConfig, energies: _Energies, chunk_frames: int
) -> tuple[float, Float32[np.ndarray, "2 mels"], Float32[np.ndarray, " mels"]]:
    """Computes `floor`, `mean` and `scale` of a `ChunkBatch`."""
    floor, mean, scale = -np.inf, np.zeros((2, config.n_mels), np.float32), np.ones(config.n_mels, np.float32)
    starts = range(0, energies.n_frames, chunk_frames)
    if config.top_db is not None:
        peak = max(energies.read(start, start + chunk_frames).max() for start in starts)
        floor = peak - np.float32(dynamic_range(config))
    if config.normalization == "none":
        return float(floor), mean, scale
    running: tuple[np.ndarray, ...] = ()
    for start in starts:
        frames = np.maximum(energies.read(start, start + chunk_frames), floor).astype(np.float64)
        chunk_moments = (np.full(config.n_mels, np.log(len(frames))), frames.mean(axis=0), frames.var(axis=0))
        running = _merge(running, chunk_moments) if running else chunk_moments
    mean[0] = running[1]
    mean[1] = running[1] - mean[0]
    if config.normalization != "mean":
        count = jnp.full((1, 1), energies.n_frames, jnp.float32)
        scale = 1 / np.asarray(deviation(config, jnp.asarray(running[2][None], jnp.float32), count))[0]
    return float(floor), mean, scale


def _group(items: Iterable[Any], rows: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == rows:
            yield group
            group = []
    if group:
        yield group


def _stack(items: list[Any], rows: int) -> Any:
    """Stacks the items to [rows, ...] and fills the remaining rows with zeros."""
    stack = np.zeros((rows, *np.shape(items[0])), np.asarray(items[0]).dtype)
    stack[: len(items)] = items
    return stack
