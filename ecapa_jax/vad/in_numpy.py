"""Runs the network of `ecapa_jax.vad.network` in NumPy: slower on long recordings, but without compilation."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from ecapa_jax.vad.network import UNITS, State, frames_of, lstm_inputs, probability
from ecapa_jax.vad.weights import Weights


def advance(
    weights: Weights, waveform: Float32[np.ndarray, " samples"], state: State
) -> tuple[Float32[np.ndarray, " frames"], State]:
    """Does what `network.advance` does, for one recording.

    Args:
      weights: weights from `load_weights`.
      waveform: [F * 512], finite.
      state: state of a batch of one recording.

    Returns:
      The probabilities [F], and the state after these samples.
    """
    frames = frames_of(waveform[None], np.asarray(state.context))[0]
    inputs = lstm_inputs(weights, frames)
    # sigmoid(x) = (tanh(x / 2) + 1) / 2, so that one call of tanh computes all four gates.
    scale = np.repeat(np.array([0.5, 0.5, 1, 0.5], np.float32), UNITS)
    inputs, kernel = inputs * scale, np.ascontiguousarray((weights["lstm_state"] * scale).T)
    hidden, cell = np.array(state.hidden[0]), np.array(state.cell[0])
    outputs, gates = np.empty((len(inputs), UNITS), np.float32), np.empty(4 * UNITS, np.float32)
    enter, keep, new, leave = gates.reshape(4, UNITS)
    for index, frame in enumerate(inputs):
        np.dot(kernel, hidden, out=gates)
        gates += frame
        np.tanh(gates, out=gates)
        cell = 0.5 * ((keep + 1) * cell + (enter + 1) * new)
        hidden = 0.5 * (leave + 1) * np.tanh(cell)
        outputs[index] = hidden
    context = np.concatenate([state.context[0], waveform])[-np.shape(state.context)[1] :]
    return np.asarray(probability(weights, outputs)), State(context[None], hidden[None], cell[None])
