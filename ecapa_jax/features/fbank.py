"""The front end: waveforms and lengths to log-mel features and mask.

Letters: B batch, S samples, T frames, M mel bands.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ecapa_jax.config import FbankConfig
from ecapa_jax.features.constants import mel_matrix
from ecapa_jax.features.frames import frame, frame_count, power_spectrum
from ecapa_jax.masks import length_mask, masked_mean

AnyArray = Array | np.ndarray


def fbank(
    config: FbankConfig, waveforms: Float[AnyArray, "batch samples"], lengths: Int[AnyArray, " batch"]
) -> tuple[Float[Array, "batch frames mels"], Bool[Array, "batch frames"]]:
    """Log-mel features of a padded batch, each utterance's equal to those it has alone.

    Pure; works under jit, vmap and grad. A function of the real samples only: padding may hold anything.

    Args:
      config: the front end.
      waveforms: [B, S], samples in [-1, 1] at `config.sample_rate`, right-padded.
      lengths: [B], true lengths in samples, at most S.

    Returns:
      features: [B, T, M], zero beyond each utterance's frames.
      mask: [B, T], True at real frames.

    Reference: `torchaudio.compliance.kaldi.fbank`, `speechbrain.lobes.features.Fbank` with
      `speechbrain.processing.features.InputNormalization(norm_type="sentence", std_norm=False)`.
    """
    waveforms, lengths = jnp.asarray(waveforms), jnp.asarray(lengths)
    mask = length_mask(frame_count(config, lengths), frame_count(config, waveforms.shape[1]))
    frames = frame(config, waveforms, lengths) * config.waveform_scale
    power = power_spectrum(config, frames)
    energy = jnp.dot(power, jnp.asarray(mel_matrix(config), power.dtype), precision=lax.Precision.HIGHEST)
    features = _compress(config, energy, mask)
    if config.normalization == "mean":
        features = features - masked_mean(features, mask)[:, None]
    return jnp.where(mask[..., None], features, 0), mask


def _compress(
    config: FbankConfig, energy: Float[Array, "batch frames mels"], mask: Bool[Array, "batch frames"]
) -> Float[Array, "batch frames mels"]:
    energy = energy + config.floor if config.floor_mode == "add" else jnp.maximum(energy, config.floor)
    features = 10.0 * jnp.log10(energy) if config.log == "db" else jnp.log(energy)
    if config.top_db is None:
        return features
    peak = jnp.max(jnp.where(mask[..., None], features, -jnp.inf), axis=(1, 2), keepdims=True)
    return jnp.maximum(features, peak - (config.top_db if config.log == "db" else config.top_db * np.log(10) / 10))
