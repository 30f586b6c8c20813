"""The network of silero-vad at 16 kHz: one speech probability for each frame of 512 samples.

Letters in shapes: B batch, S samples, F frames, N all frames of a batch. A frame is seen with the 64 samples before it.
Its 576 samples are extended by 64 mirrored ones and transformed to four magnitude spectra; four convolutions make one
vector of those, an LSTM over the frames follows, and a weighted sum gives the probability.

The part before the LSTM looks at each frame alone, so that all frames are computed at once. It is written once, for
JAX and for NumPy: `ecapa_jax.vad.in_numpy` runs the network without a compiler.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ecapa_jax.vad.weights import AnyArray, Weights, packaged_weights

RATE = 16_000
"""Hz."""
FRAME = 512
"""Samples of a frame; frames do not overlap."""
CONTEXT = 64
"""Samples before a frame that are seen with it; zeros before the first."""
UNITS = 128
"""Of the LSTM."""

_HOP = 128  # samples between spectra, half of what each sees
_SPECTRA = 4  # of a frame
_SMALLEST_POWER = 1e-30  # the root has no derivative at the 0 of digital silence
_FRAMES_AT_ONCE = 4096  # a frame takes about 25 kB before the LSTM


class State(NamedTuple):
    """What the network knows of the frames before.

    Attributes:
      context: [B, 64], the last samples.
      hidden, cell: [B, 128], of the LSTM.
    """

    context: Float[AnyArray, "batch 64"]
    hidden: Float[AnyArray, "batch 128"]
    cell: Float[AnyArray, "batch 128"]


def initial_state(batch: int) -> State:
    """The state at the begin of recordings, in NumPy."""
    return State(*(np.zeros((batch, size), np.float32) for size in (CONTEXT, UNITS, UNITS)))


def speech_probabilities(
    waveforms: Float[AnyArray, "batch samples"],
    lengths: Int[AnyArray, " batch"],
    weights: Weights | None = None,
) -> Float[Array, "batch frames"]:
    """Computes how likely it is that somebody speaks, for each 32 ms of recordings.

    Each recording's probabilities are those it has alone, whatever its batch mates and whatever the padding holds. The
    function is pure and works under jit and vmap.

    Args:
      waveforms: [B, S], samples in [-1, 1] at 16 kHz, right-padded.
      lengths: [B], true lengths in samples, at most S.
      weights: as `load_weights` gives them; None means the packaged ones.

    Returns:
      [B, ceil(S / 512)] float32. The last frame of a recording is filled up with zeros; frames beyond it get 0.

    Raises:
      TypeError: the waveforms are not floats, or the lengths not integers.
      ValueError: the shapes do not fit each other.

    Reference: silero-vad 6.2, `OnnxWrapper.audio_forward`.
    """
    waveforms, lengths = jnp.asarray(waveforms), jnp.asarray(lengths)
    if not jnp.issubdtype(waveforms.dtype, jnp.floating) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"waveforms are {waveforms.dtype} and lengths {lengths.dtype}; give floats in [-1, 1] and integers"
        )
    if waveforms.ndim != 2 or lengths.shape != waveforms.shape[:1]:
        raise ValueError(f"waveforms have shape {waveforms.shape} and lengths {lengths.shape}; give [B, S] and [B]")
    return _masked(packaged_weights() if weights is None else weights, waveforms, lengths)


@jax.jit
def _masked(
    weights: Weights, waveforms: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> Float[Array, "batch frames"]:
    batch, n_samples = waveforms.shape
    n_frames = -(-n_samples // FRAME)
    real = jnp.arange(n_samples)[None] < lengths[:, None]
    waveforms = jnp.where(real, waveforms, 0).astype(jnp.float32)
    waveforms = jnp.pad(waveforms, ((0, 0), (0, n_frames * FRAME - n_samples)))
    probabilities, _ = advance(weights, waveforms, initial_state(batch))
    return jnp.where(jnp.arange(n_frames)[None] * FRAME < lengths[:, None], probabilities, 0)


def advance(
    weights: Weights, waveforms: Float[AnyArray, "batch samples"], state: State
) -> tuple[Float[Array, "batch frames"], State]:
    """Computes the probabilities of the next samples of recordings that come in parts.

    Args:
      weights: as `load_weights` gives them.
      waveforms: [B, F * 512], finite.
      state: as `initial_state` or the call for the samples before gives it.

    Returns:
      Probabilities [B, F], and the state after these samples.
    """
    waveforms, state = jnp.asarray(waveforms), State(*map(jnp.asarray, state))
    batch, n_samples = waveforms.shape
    if n_samples == 0:
        return jnp.zeros((batch, 0), jnp.float32), state
    with jax.numpy_rank_promotion("allow"):
        frames = frames_of(waveforms, state.context)
        flat = frames.reshape(-1, CONTEXT + FRAME)
        if len(flat) <= _FRAMES_AT_ONCE:
            inputs = lstm_inputs(weights, flat)
        else:
            inputs = jax.lax.map(lambda frame: lstm_inputs(weights, frame[None])[0], flat, batch_size=_FRAMES_AT_ONCE)

        def step(
            carry: tuple[Array, Array], inputs: Float[Array, "batch 512"]
        ) -> tuple[tuple[Array, Array], Float[Array, "batch 128"]]:
            hidden, cell = carry
            gates = inputs + _dot(hidden, weights["lstm_state"])
            enter, keep, new, leave = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return (hidden, cell), hidden

        by_time = inputs.reshape(batch, -1, 4 * UNITS).swapaxes(0, 1)
        (hidden, cell), outputs = jax.lax.scan(step, (state.hidden, state.cell), by_time)
        probabilities = probability(weights, outputs.swapaxes(0, 1))
        return probabilities, State(waveforms[:, -CONTEXT:], hidden, cell)


def frames_of(
    waveforms: Float[AnyArray, "batch samples"], context: Float[AnyArray, "batch 64"]
) -> Float[AnyArray, "batch frames 576"]:
    """Cuts samples, a multiple of 512, into frames, each with the 64 samples before it."""
    xp = waveforms.__array_namespace__()
    frames = waveforms.reshape(len(waveforms), -1, FRAME)
    before = xp.concatenate([context[:, None], frames[:, :-1, -CONTEXT:]], axis=1)
    return xp.concatenate([before, frames], axis=2)


def lstm_inputs(weights: Weights, frames: Float[AnyArray, "n 576"]) -> Float[AnyArray, "n 512"]:
    """Computes what the LSTM's gates get from each frame itself: all that does not depend on the frames before.

    Only what reaches the one vector of a frame is computed: the third convolution makes that vector of the two it
    gets, and the last one sees padding on both of its sides.
    """
    xp = frames.__array_namespace__()
    n = len(frames)
    mirrored = frames[:, -2 : -2 - CONTEXT : -1]
    parts = xp.concatenate([frames, mirrored], axis=1).reshape(n, _SPECTRA + 1, _HOP)
    spectra = _dot(xp.concatenate([parts[:, :-1], parts[:, 1:]], axis=2), weights["transform"])
    cosines, sines = spectra[..., :129], spectra[..., 129:]
    x = xp.sqrt(xp.maximum(cosines * cosines + sines * sines, _SMALLEST_POWER))
    x = _padded(x, 1, 1)
    x = xp.concatenate([x[:, tap : tap + _SPECTRA] for tap in range(3)], axis=2)
    x = _dense(weights, 0, x)
    x = _padded(x, 1, 0)
    x = xp.stack([x[:, 0:3].reshape(n, -1), x[:, 2:5].reshape(n, -1)], axis=1)  # every second position
    x = _dense(weights, 1, x)
    x = _dense(weights, 2, x.reshape(n, -1), slice(1, 3))
    x = _dense(weights, 3, x, slice(1, 2))
    return _dot(x, weights["lstm_input"]) + (weights["lstm_input_bias"] + weights["lstm_state_bias"])


def probability(weights: Weights, hidden: Float[AnyArray, "*axes 128"]) -> Float[AnyArray, "*axes"]:
    """The speech probability, from the LSTM's output."""
    xp = hidden.__array_namespace__()
    logit = (xp.maximum(hidden, 0) * weights["output"]).sum(axis=-1) + weights["output_bias"]
    return 1 / (1 + xp.exp(-logit))


def _dense(
    weights: Weights, layer: int, x: Float[AnyArray, "*axes inputs"], taps: slice = slice(None)
) -> Float[AnyArray, "*axes outputs"]:
    """A convolution whose input is laid out tap by tap, with its ReLU."""
    xp = x.__array_namespace__()
    kernel = weights[f"convolution_{layer}"][taps]
    return xp.maximum(_dot(x, kernel.reshape(-1, kernel.shape[-1])) + weights[f"convolution_{layer}_bias"], 0)


def _padded(x: Float[AnyArray, "n time channels"], before: int, after: int) -> Float[AnyArray, "n padded channels"]:
    return x.__array_namespace__().pad(x, ((0, 0), (before, after), (0, 0)))


def _dot(a: Float[AnyArray, "*axes inputs"], b: Float[AnyArray, "inputs outputs"]) -> Float[AnyArray, "*axes outputs"]:
    if isinstance(a, np.ndarray):
        return a @ b
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
