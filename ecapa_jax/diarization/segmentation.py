"""The network segmentation-3.0 of pyannote in JAX: detects which of up to three voices speak in each frame.

The network processes chunks of ten seconds and distinguishes voices only within a chunk: voice 0 of one chunk need not
be voice 0 of the next. Its output is a probability distribution over the sets of at most two of the three voices.

Letters: B chunks, S samples, T frames, C channels, H hidden units.

Reference: Plaquet and Bredin 2023, "Powerset multi-class cross entropy loss for neural speaker diarization";
`pyannote.audio.models.segmentation.PyanNet`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32

from ecapa_jax.errors import BundleError
from ecapa_jax.modes import in_library_modes

RATE = 16000
"""Sample rate of the network, Hz."""
CHUNK_SAMPLES = 10 * RATE
"""Number of samples in a chunk."""
CHUNK_FRAMES = 589
"""Number of frames that the network computes for a chunk."""
FRAME_SAMPLES = 270
"""Number of samples from one frame to the next."""
RECEPTIVE_SAMPLES = 991
"""Number of samples on which a frame depends; those of the first frame begin with the chunk."""
VOICES = 3
SETS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2))
"""The set of voices for each class of the output."""
LAYERS = 4
"""Number of bidirectional LSTM layers."""
BATCH = 8
"""Number of chunks in a batch: smaller batches make the recurrent products slow, larger ones exceed the caches."""

Weights: TypeAlias = dict[str, Any]

_TAPS, _STRIDE, _POOL = 251, 10, 3
_EPSILON = 1e-5  # of InstanceNorm1d
_SLOPE = 0.01  # of leaky ReLU


def log_probabilities(
    weights: Weights, waveforms: Float[Array, "chunks samples"]
) -> Float[Array, "chunks frames classes"]:
    """Returns the log-probability of each set of voices in each frame. The function is pure and works under jit.

    Args:
      weights: weights from `load_weights`.
      waveforms: [B, S] at 16 kHz, in [-1, 1]; the network was trained on `CHUNK_SAMPLES` samples.

    Returns:
      [B, T, 7]; the last axis has the order of `SETS`.
    """
    frames = _sincnet(weights, waveforms)
    for layer in range(LAYERS):
        frames = _bidirectional_lstm(weights["lstm"][layer], frames)
    for dense in weights["linear"]:
        frames = _leaky_relu(_dot(frames, dense["kernel"]) + dense["bias"])
    classifier = weights["classifier"]
    return jax.nn.log_softmax(_dot(frames, classifier["kernel"]) + classifier["bias"], axis=-1)


def active_voices(classes: np.ndarray) -> Bool[np.ndarray, "*frames voices"]:
    """Returns which voices speak, from the most likely class of each frame.

    Args:
      classes: indices into `SETS`, of any shape.
    """
    return powerset()[classes]


def powerset() -> Bool[np.ndarray, "classes voices"]:
    """Returns which voices belong to each class."""
    table = np.zeros((len(SETS), VOICES), bool)
    for row, voices in enumerate(SETS):
        table[row, list(voices)] = True
    return table


def n_frames(n_samples: int) -> int:
    """Returns the number of frames that the network computes from a number of samples."""
    frames = (n_samples - _TAPS) // _STRIDE + 1
    for kernel in (1, 5, 5):
        frames = (frames - kernel + 1) // _POOL
    return frames


@functools.cache
def _load_packaged() -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    return load((resources.files("ecapa_jax.diarization") / "segmentation_3.0.safetensors").read_bytes())


def load_weights(path: str | os.PathLike[str] | None = None) -> Weights:
    """Reads weights from a file that `ecapa-jax convert` wrote.

    Args:
      path: the file; None reads the weights that are packaged with this library.

    Returns:
      The tree that `log_probabilities` takes, float32.

    Raises:
      BundleError: the file does not exist, is damaged, or belongs to another network.
    """
    flat = _load_packaged() if path is None else _read_weights(path)
    return nest_weights({name: array.astype(np.float32) for name, array in flat.items()})


def _read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        flat = load(Path(path).read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: can't be read ({error.strerror}); give the file of overlap detection") from error
    except (SafetensorError, ValueError) as error:
        raise BundleError(f"{path}: is damaged or not a safetensors file; convert pytorch_model.bin again") from error
    shapes, wanted = ({name: array.shape for name, array in arrays.items()} for arrays in (flat, _load_packaged()))
    if shapes != wanted:
        raise BundleError(f"{path}: holds other arrays than those of segmentation-3.0; convert pytorch_model.bin again")
    if not all(np.isfinite(array).all() for array in flat.values()):
        raise BundleError(f"{path}: holds numbers that are not finite; convert pytorch_model.bin again")
    return flat


def nest_weights(flat: dict[str, np.ndarray]) -> Weights:
    """Makes the tree of weights for `log_probabilities` from its leaves.

    Args:
      flat: arrays by name, such as `lstm.0.input` or `linear.1.bias`, as `ecapa_jax.convert.segmentation` writes them.
    """
    tree: Weights = {}
    for name, array in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    for group in ("conv", "norm", "lstm", "linear"):
        tree[group] = [tree[group][str(index)] for index in range(len(tree[group]))]
    return tree


class Segmenter:
    """The network compiled for batches of chunks, on the first local device.

    Attributes:
      weights: the weights on the device.
    """

    def __init__(self, weights: Weights | None = None):
        self.weights = jax.device_put(weights or load_weights(), jax.local_devices()[0])
        self._run = _jitted_network()

    def __call__(
        self, chunks: Iterable[Float32[np.ndarray, " samples"]]
    ) -> Iterator[Float32[np.ndarray, "frames classes"]]:
        """Yields the log-probabilities of each chunk, in order; reads one batch of chunks at a time.

        Args:
          chunks: chunks of at most `CHUNK_SAMPLES` samples; shorter ones are padded with zeros.
        """
        batch: list[np.ndarray] = []
        for chunk in chunks:
            batch.append(chunk)
            if len(batch) == BATCH:
                yield from self._compute(batch)
                batch = []
        if batch:
            yield from self._compute(batch)

    @in_library_modes
    def _compute(self, batch: list[np.ndarray]) -> Float32[np.ndarray, "rows frames classes"]:
        rows = BATCH if len(batch) > 1 else 1  # at most two shapes are compiled
        padded = np.zeros((rows, CHUNK_SAMPLES), np.float32)
        for row, chunk in enumerate(batch):
            padded[row, : len(chunk)] = chunk
        return np.asarray(self._run(self.weights, padded))[: len(batch)]


@functools.cache
def _jitted_network() -> Any:
    return jax.jit(log_probabilities)


def _sincnet(weights: Weights, waveforms: Float[Array, "chunks samples"]) -> Float[Array, "chunks frames channels"]:
    x = _instance_norm(weights["wave_norm"], waveforms[..., None])
    x = jnp.abs(lax.map(functools.partial(_filter, weights["sinc"]["kernel"]), x[..., 0]))
    x = _leaky_relu(_instance_norm(weights["norm"][0], _pool(x)))
    for conv, norm in zip(weights["conv"], weights["norm"][1:], strict=True):
        x = _pool(_convolve(x, conv["kernel"]) + conv["bias"])
        x = _leaky_relu(_instance_norm(norm, x))
    return x


def _filter(kernel: Float[Array, "taps channels"], wave: Float[Array, " samples"]) -> Float[Array, "frames channels"]:
    """Applies the filter bank as one matrix product, because a convolution of one channel is slow on a CPU."""
    n = (wave.shape[0] - _TAPS) // _STRIDE + 1
    blocks = -(-_TAPS // _STRIDE)
    padded = jnp.pad(wave, (0, (n + blocks) * _STRIDE - wave.shape[0] if (n + blocks) * _STRIDE > wave.shape[0] else 0))
    hops = padded[: (n + blocks) * _STRIDE].reshape(n + blocks, _STRIDE)
    columns = jnp.concatenate([hops[shift : shift + n] for shift in range(blocks)], axis=1)
    return _dot(columns, jnp.pad(kernel, ((0, blocks * _STRIDE - _TAPS), (0, 0))))


def _convolve(
    x: Float[Array, "chunks frames channels"], kernel: Float[Array, "taps channels out"]
) -> Float[Array, "chunks shorter out"]:
    return lax.conv_general_dilated(
        x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), precision=lax.Precision.HIGHEST
    )


def _pool(x: Float[Array, "chunks frames channels"]) -> Float[Array, "chunks thirds channels"]:
    thirds = x.shape[1] // _POOL
    return x[:, : thirds * _POOL].reshape(x.shape[0], thirds, _POOL, x.shape[2]).max(axis=2)


def _instance_norm(weights: Weights, x: Float[Array, "chunks frames channels"]) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1, keepdims=True)
    return centred * lax.rsqrt(variance + _EPSILON) * weights["scale"] + weights["bias"]


def _bidirectional_lstm(
    weights: Weights, x: Float[Array, "chunks frames channels"]
) -> Float[Array, "chunks frames both_hidden"]:
    """Applies one LSTM layer in both directions at once; the gates have the order of PyTorch: i, f, g, o."""
    inputs = jnp.stack([x, x[:, ::-1]])  # [2, B, T, C]
    gates = jnp.einsum("dbtc,dcg->tdbg", inputs, weights["input"], precision=lax.Precision.HIGHEST)
    gates = gates + weights["bias"][:, None]
    zeros = jnp.zeros((2, x.shape[0], weights["hidden"].shape[1]), x.dtype)

    def step(state: tuple[Array, Array], gate: Array) -> tuple[tuple[Array, Array], Array]:
        hidden, cell = state
        gate = gate + jnp.einsum("dbh,dhg->dbg", hidden, weights["hidden"], precision=lax.Precision.HIGHEST)
        write, keep, value, read = jnp.split(gate, 4, axis=-1)
        cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(write) * jnp.tanh(value)
        hidden = jax.nn.sigmoid(read) * jnp.tanh(cell)
        return (hidden, cell), hidden

    _, hidden = lax.scan(step, (zeros, zeros), gates)  # [T, 2, B, H]
    return jnp.concatenate([hidden[:, 0], hidden[::-1, 1]], axis=-1).swapaxes(0, 1)


def _dot(x: Float[Array, "*rows channels"], kernel: Float[Array, "channels out"]) -> Float[Array, "*rows out"]:
    return jnp.dot(x, kernel, precision=lax.Precision.HIGHEST)


def _leaky_relu(x: Array) -> Array:
    return jnp.where(x >= 0, x, _SLOPE * x)
