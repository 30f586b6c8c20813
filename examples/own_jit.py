"""Scores every pair of recordings in one compiled function of your own.

    python examples/own_jit.py a.wav b.wav ... [--model BUNDLE]

The model is a configuration and a dict of arrays, and `ecapa_jax.embed` is a pure function of them. This example
combines it in one program with a step before it (level normalization) and a step after it (the score matrix).
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import ecapa_jax


def main() -> None:
    """Prints the score matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+")
    parser.add_argument("--model", help="bundle directory or address; the packaged model unless given")
    arguments = parser.parse_args()

    encoder = ecapa_jax.load(arguments.model)
    config = encoder.config  # hashable, so the function below may close over it

    @jax.jit
    def scores(variables: dict, waveforms: jax.Array, lengths: jax.Array) -> jax.Array:
        inside = jnp.arange(waveforms.shape[1]) < lengths[:, None]
        level = jnp.sqrt(jnp.mean(waveforms**2, axis=1, where=inside, keepdims=True))
        embeddings = ecapa_jax.embed(config, variables, 0.1 * waveforms / level, lengths)
        return ecapa_jax.score_matrix(embeddings, embeddings)

    signals = [encoder.read(recording) for recording in arguments.recordings]
    lengths = np.array([len(signal) for signal in signals], np.int32)
    waveforms = np.zeros((len(signals), max(lengths)), np.float32)  # samples beyond the length are ignored
    for row, signal in zip(waveforms, signals, strict=True):
        row[: len(signal)] = signal
    print(np.array2string(np.asarray(scores(encoder.variables, waveforms, lengths)), precision=2, suppress_small=True))


if __name__ == "__main__":
    main()
