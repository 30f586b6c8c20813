"""The network of silero-vad at 16 kHz: computes a speech probability for each frame of 512 samples.

Letters in shapes: B batch, S samples, F frames, N all frames of a batch. The network sees each frame with
the 64 samples before it. These 576 samples are extended by 64 mirrored samples and transformed to four magnitude
spectra. Four convolutions reduce the spectra to one vector, an LSTM runs over the vectors of all frames, and a weighted
sum of its output gives the probability.

The part before the LSTM processes each frame by itself, so that all frames can be computed at once. The same code
serves JAX and NumPy: `ecapa_jax.vad.in_numpy` runs the network without a compiler.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ecapa_jax.vad.weights import AnyArray, Weights, packaged_weights

RATE = 16_000
"""Sample rate of the network, Hz."""
FRAME = 512
"""Number of samples in a frame; frames do not overlap."""
CONTEXT = 64
"""Number of samples before a frame that the network sees with it; zeros before the first frame."""
UNITS = 128
"""Number of units of the LSTM."""

_HOP = 128  # samples from one spectrum to the next; each sees twice as many
_SPECTRA = 4  # spectra of a frame
_SMALLEST_POWER = 1e-30  # the square root has no derivative at 0, the power of digital silence
_FRAMES_AT_ONCE = 4096  # a frame takes about 25 kB before the LSTM


class State(NamedTuple):
    """The state of the network after some frames.

    Attributes:
      context: [B, 64], the last samples.
      hidden, cell: [B, 128], state of the LSTM.
    """

    context: Float[AnyArray, "batch 64"]
    hidden: Float[AnyArray, "batch 128"]
    cell: Float[AnyArray, "batch 128"]


def initial_state(batch: int) -> State:
    """Returns the state at the beginning of recordings, in NumPy."""
    return State(*(np.zeros((batch, size), np.float32) for size in (CONTEXT, UNITS, UNITS)))


def speech_probabilities(
    waveforms: Float[AnyArray, "batch samples"],
    lengths: Int[AnyArray, " batch"],
    weights: Weights | None = None,
) -> Float[Array, "batch frames"]:
    """Computes how likely it is that somebody speaks, for each 32 ms of recordings.

    The probabilities of a recording depend neither on the other recordings of the batch nor on the padding. The
    function is pure and works under jit and vmap.

    Args:
      waveforms: [B, S], samples in [-1, 1] at 16 kHz, right-padded.
      lengths: [B], number of real samples, at most S.
      weights: weights from `load_weights`; None means the packaged weights.

    Returns:
      [B, ceil(S / 512)] float32. The last frame of a recording is padded with zeros; frames after it get 0.

    Raises:
      TypeError: the waveforms are not floats, or the lengths not integers.
      ValueError: the shapes do not match.

    Reference: silero-vad 6.2, `OnnxWrapper.audio_forward`.
    """
    waveforms, lengths = jnp.asarray(waveforms), jnp.asarray(lengths)
    if not jnp.issubdtype(waveforms.dtype, jnp.floating) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"waveforms are {waveforms.dtype} and lengths {lengths.dtype}; give floats in [-1, 1] and integers"
        )
    if waveforms.ndim != 2 or lengths.shape != waveforms.shape[:1]:
        raise ValueError(f"waveforms have shape {waveforms.shape} and lengths {lengths.shape}; give [B, S] and [B]")
    return _compute_masked(packaged_weights() if weights is None else weights, waveforms, lengths)


@jax.jit
def _compute_masked(
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
    """Computes the probabilities for the next samples of recordings that arrive in parts.

    Args:
      weights: weights from `load_weights`.
      waveforms: [B, F * 512], finite.
      state: state from `initial_state`, or from the call for the samples before.

    Returns:
      The probabilities [B, F], and the state after these samples.
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

        def step(carry: tuple[Array, Array], inputs: Any) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = carry
            gates = inputs + _dot(hidden, weights["lstm_state"])
            enter, keep, new, leave = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return (hidden, cell), hidden

        by_time = inputs.reshape(batch, -1, 4 * UNITS).swapaxes(0, 1)
        begin = jnp.asarray(state.hidden), jnp.asarray(state.cell)
        (hidden, cell), outputs = jax.lax.scan(step, begin, by_time)
        probabilities = jnp.asarray(probability(weights, outputs.swapaxes(0, 1)))
        return probabilities, State(waveforms[:, -CONTEXT:], hidden, cell)


def frames_of(
    waveforms: Float[AnyArray, "batch samples"], context: Float[AnyArray, "batch 64"]
) -> Float[AnyArray, "batch frames 576"]:
    """Cuts a multiple of 512 samples into frames, each with the 64 samples before it."""
    xp = waveforms.__array_namespace__()
    frames = waveforms.reshape(len(waveforms), -1, FRAME)
    before = xp.concatenate([context[:, None], frames[:, :-1, -CONTEXT:]], axis=1)
    return xp.concatenate([before, frames], axis=2)


def lstm_inputs(weights: Weights, frames: Float[AnyArray, "n 576"]) -> Float[AnyArray, "n 512"]:
    """Computes the inputs of the LSTM gates from each frame, which do not depend on other frames.

    Only the taps that affect the one vector of a frame are computed: the third convolution reduces two vectors to one,
    and the last convolution sees padding on both sides of it.
    """
    xp = frames.__array_namespace__()
    n = len(frames)
    mirrored = frames[:, -2 : -2 - CONTEXT : -1]
    parts = xp.concatenate([frames, mirrored], axis=1).reshape(n, _SPECTRA + 1, _HOP)
    spectra = _dot(xp.concatenate([parts[:, :-1], parts[:, 1:]], axis=2), weights["transform"])
    cosines, sines = spectra[..., :129], spectra[..., 129:]
    x = xp.sqrt(xp.maximum(cosines * cosines + sines * sines, _SMALLEST_POWER))
    x = _pad_time(x, 1, 1)
    x = xp.concatenate([x[:, tap : tap + _SPECTRA] for tap in range(3)], axis=2)
    x = _dense(weights, 0, x)
    x = _pad_time(x, 1, 0)
    x = xp.stack([x[:, 0:3].reshape(n, -1), x[:, 2:5].reshape(n, -1)], axis=1)  # every second position
    x = _dense(weights, 1, x)
    x = _dense(weights, 2, x.reshape(n, -1), slice(1, 3))
    x = _dense(weights, 3, x, slice(1, 2))
    return _dot(x, weights["lstm_input"]) + (weights["lstm_input_bias"] + weights["lstm_state_bias"])


def probability(weights: Weights, hidden: Float[AnyArray, "*axes 128"]) -> Float[AnyArray, "*axes"]:
    """Computes the speech probability from the output of the LSTM."""
    xp = hidden.__array_namespace__()
    logit = (xp.maximum(hidden, 0) * weights["output"]).sum(axis=-1) + weights["output_bias"]
    return 1 / (1 + xp.exp(-logit))


def _dense(
    weights: Weights, layer: int, x: Float[AnyArray, "*axes inputs"], taps: slice = slice(None)
) -> Float[AnyArray, "*axes outputs"]:
    """Applies a convolution and a ReLU to an input that is laid out tap by tap."""
    xp = x.__array_namespace__()
    kernel = weights[f"convolution_{layer}"][taps]
    return xp.maximum(_dot(x, kernel.reshape(-1, kernel.shape[-1])) + weights[f"convolution_{layer}_bias"], 0)


def _pad_time(x: Float[AnyArray, "n time channels"], before: int, after: int) -> Float[AnyArray, "n padded channels"]:
    return x.__array_namespace__().pad(x, ((0, 0), (before, after), (0, 0)))


def _dot(a: Float[AnyArray, "*axes inputs"], b: Float[AnyArray, "inputs outputs"]) -> Float[AnyArray, "*axes outputs"]:
    if isinstance(a, np.ndarray):
        return a @ b
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
