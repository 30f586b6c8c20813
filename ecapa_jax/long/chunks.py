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
    """Chunks with their halos, one chunk in each row.

    Attributes:
      frames: [B, W, M], log energies, as from `log_energies`.
      real: [B], number of rows of `frames` that belong to the recording; the others may hold any finite number.
      seen: [B], number of frames that the convolutions see: the real frames and the blank frames of the front end.
      start, stop: [B], first frame of the chunk without its halo, and the frame after its last.
      floor: [B], lower limit of log energies: `top_db` below the peak of the recording, or -inf.
      mean: [B, 2, M], mean to subtract, as the sum of two terms: a band may vary by less than the float32 resolution
        of its mean.
      scale: [B, M], factor applied after the mean is subtracted.
      n_frames: [B], frames of the whole recording.
    """

    frames: Float[AnyArray, "batch chunk mels"]
    real: Rows
    seen: Rows
    start: Rows
    stop: Rows
    floor: Float[AnyArray, " batch"]
    mean: Float[AnyArray, "batch 2 mels"]
    scale: Float[AnyArray, "batch mels"]
    n_frames: Rows


def halo(config: EcapaConfig, n_blocks: int, *, mfa: bool = False) -> int:
    """Returns how many frames before and after a frame the stem and the first blocks (and the MFA) see."""
    chain = 1 if config.multiscale == "grouped" else config.res2_scale - 1
    reach = (config.kernel_sizes[0] - 1) // 2
    for kernel, dilation in list(zip(config.kernel_sizes[1:], config.dilations, strict=True))[:n_blocks]:
        reach += chain * dilation * (kernel - 1) // 2
    return reach + mfa * config.mfa_dilation * (config.mfa_kernel_size - 1) // 2


def log_energies(
    config: ModelConfig, variables: Variables, waveforms: Float[AnyArray, "batch samples"], lengths: Rows
) -> Float[Array, "batch chunk mels"]:
    """Computes the log energies of all frames, before anything that depends on the whole recording."""
    return log_mels(config.fbank, waveforms, lengths, variables["constants"])[0]


def block_mean(config: ModelConfig, variables: Variables, chunk: ChunkBatch, gate_means: GateMeans) -> Moments:
    """Returns what a chunk adds to the mean that gates block `len(gate_means)`; the earlier means are known."""
    model = functional.network(config.ecapa, variables)
    features, seen, keep = _normalise(chunk)
    return moments.mean_moments(moments.hidden_frames(model, features, seen, gate_means), keep)


def context(config: ModelConfig, variables: Variables, chunk: ChunkBatch, gate_means: GateMeans) -> Moments:
    """Returns what a chunk adds to the mean and variance of the output of the MFA."""
    model = functional.network(config.ecapa, variables)
    features, seen, keep = _normalise(chunk)
    return moments.frame_moments(moments.mfa_frames(model, features, seen, gate_means), keep)


def pooling(
    config: ModelConfig,
    variables: Variables,
    chunk: ChunkBatch,
    gate_means: GateMeans,
    context: Moments | None,
) -> Moments:
    """Returns what a chunk adds to the attentive statistics; `context` belongs to the whole recording, or is None."""
    model = functional.network(config.ecapa, variables)
    features, seen, keep = _normalise(chunk)
    x = moments.mfa_frames(model, features, seen, gate_means)
    return moments.pooling_moments(model, x, keep, context, jnp.asarray(chunk.n_frames))


def finish(config: ModelConfig, variables: Variables, merged: Moments, count: Rows) -> Float[Array, "batch embedding"]:
    """Computes the embedding from the moments of the whole recording that the last pass returned."""
    model = functional.network(config.ecapa, variables)
    return model.embed_pooled(moments.pool_moments(model, merged, jnp.asarray(count)))


def _normalise(chunk: ChunkBatch) -> tuple[Float[Array, "batch chunk mels"], moments.Mask, moments.Mask]:
    """Returns normalised features, the mask of the frames that convolutions see, and the mask of the chunk."""
    position = jnp.arange(chunk.frames.shape[1])[None]

    def before(rows: Rows) -> moments.Mask:
        return position < rows[:, None]

    frames = jnp.maximum(chunk.frames, chunk.floor[:, None, None])
    frames = (frames - chunk.mean[:, :1] - chunk.mean[:, 1:]) * chunk.scale[:, None]
    features = jnp.where(before(chunk.real)[..., None], frames, 0)
    return features, before(chunk.seen), before(chunk.stop) & ~before(chunk.start)
