"""The model over one chunk of a long recording at a time: pure functions over plain nested dicts, as in `functional`.

`embed` reduces over the whole utterance at a few places only: range and mean of the features, the mean of each block's
squeeze-excitation, the attention's context, the pooling. What lies between is local in time, so that a chunk with a
halo of its neighbours' frames gives exactly its share of each reduction. A `ChunkBatch` holds such chunks. The network
treats the ends of a chunk as ends of a recording; where they are not, the error stays inside the halo.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ecapa_jax import functional
from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.features.fbank import AnyArray, log_mels
from ecapa_jax.functional import Variables
from ecapa_jax.long import moments
from ecapa_jax.long.moments import GateMeans, Moments

Rows = Int[AnyArray, " batch"]


class ChunkBatch(NamedTuple):
    """Chunks with their halos, one a row.

    Attributes:
      frames: [B, W, M] log energies, as from `log_energies`.
      real: [B], how many of them are frames of the recording; the others may hold anything finite.
      seen: [B], how many the convolutions see: those and the model's own blank frames.
      start, stop: [B], the chunk itself.
      floor: [B], log energies are raised to it: `top_db` below the recording's peak, or -inf.
      mean: [B, 2, M], what is subtracted, as two terms: a band may vary by less than float32 resolves of its mean.
      scale: [B, M], what the differences are multiplied by.
      n_frames: [B], frames of the whole recording.
    """

    frames: Float[AnyArray, "batch window mels"]
    real: Rows
    seen: Rows
    start: Rows
    stop: Rows
    floor: Float[AnyArray, " batch"]
    mean: Float[AnyArray, "batch 2 mels"]
    scale: Float[AnyArray, "batch mels"]
    n_frames: Rows


def halo(config: EcapaConfig, n_blocks: int, *, mfa: bool = False) -> int:
    """Frames a side that stem and first blocks (and the MFA) look beyond a frame."""
    chain = 1 if config.multiscale == "grouped" else config.res2_scale - 1
    reach = (config.kernel_sizes[0] - 1) // 2
    for kernel, dilation in list(zip(config.kernel_sizes[1:], config.dilations, strict=True))[:n_blocks]:
        reach += chain * dilation * (kernel - 1) // 2
    return reach + mfa * config.mfa_dilation * (config.mfa_kernel_size - 1) // 2


def log_energies(
    config: ModelConfig, variables: Variables, waveforms: Float[AnyArray, "batch samples"], lengths: Rows
) -> Float[Array, "batch window mels"]:
    """Log energies of all frames, before anything is taken over the recording."""
    return log_mels(config.fbank, waveforms, lengths, variables["constants"])[0]


def block_mean(config: ModelConfig, variables: Variables, window: ChunkBatch, gate_means: GateMeans) -> Moments:
    """A chunk's share of the mean that block `len(gate_means)` is gated by; `gate_means` are those of the others."""
    model = functional.network(config.ecapa, variables)
    features, seen, keep = _normalised(window)
    return moments.mean_moments(moments.hidden_frames(model, features, seen, gate_means), keep)


def context(config: ModelConfig, variables: Variables, window: ChunkBatch, gate_means: GateMeans) -> Moments:
    """A chunk's share of mean and variance of the MFA's output."""
    model = functional.network(config.ecapa, variables)
    features, seen, keep = _normalised(window)
    return moments.frame_moments(moments.mfa_frames(model, features, seen, gate_means), keep)


def pooling(
    config: ModelConfig,
    variables: Variables,
    window: ChunkBatch,
    gate_means: GateMeans,
    context: Moments | None,
) -> Moments:
    """A chunk's share of the attentive statistics; `context` is the whole recording's, None without one."""
    model = functional.network(config.ecapa, variables)
    features, seen, keep = _normalised(window)
    x = moments.mfa_frames(model, features, seen, gate_means)
    return moments.pooling_moments(model, x, keep, context, jnp.asarray(window.n_frames))


def finish(config: ModelConfig, variables: Variables, merged: Moments, count: Rows) -> Float[Array, "batch embedding"]:
    """The embedding from the moments of the whole recording, as the last pass left them."""
    model = functional.network(config.ecapa, variables)
    return model.embed_pooled(moments.pooled(model, merged, jnp.asarray(count)))


def _normalised(window: ChunkBatch) -> tuple[Float[Array, "batch window mels"], moments.Mask, moments.Mask]:
    """Features as the network takes them, what its convolutions see of them, and the chunk's own frames."""
    position = jnp.arange(window.frames.shape[1])[None]

    def before(rows: Rows) -> moments.Mask:
        return position < rows[:, None]

    frames = jnp.maximum(window.frames, window.floor[:, None, None])
    frames = (frames - window.mean[:, :1] - window.mean[:, 1:]) * window.scale[:, None]
    features = jnp.where(before(window.real)[..., None], frames, 0)
    return features, before(window.seen), before(window.stop) & ~before(window.start)
