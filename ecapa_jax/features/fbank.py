"""The front end: turns waveforms and lengths into log-mel features and a mask.

Letters: B batch, S samples, T frames, M mel bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ecapa_jax.config import FbankConfig
from ecapa_jax.errors import ConfigError
from ecapa_jax.features.constants import mel_matrix, window
from ecapa_jax.features.frames import frame, frame_count, power_spectrum, seen_count
from ecapa_jax.masks import length_mask, mask_lengths, masked_mean
from ecapa_jax.modes import allow_rank_promotion

AnyArray: TypeAlias = Array | np.ndarray
Frames = Float[Array, "batch frames mels"]
Mask = Bool[Array, "batch frames"]
Bands = Float[Array, "batch mels"]

STD_EPSILON = 1e-5
"""Epsilon of the normalisations `mean_std` and `instance`, as in NeMo and in torch.nn.InstanceNorm1d."""


@allow_rank_promotion
def fbank(
    config: FbankConfig,
    waveforms: Float[AnyArray, "batch samples"],
    lengths: Int[AnyArray, " batch"],
    constants: Mapping[str, AnyArray] | None = None,
) -> tuple[Float[Array, "batch frames mels"], Bool[Array, "batch frames"]]:
    """Computes the log-mel features of a padded batch. An utterance has the same features alone and in any batch.

    The function is pure and works under jit, vmap and grad. It depends on real samples only: padding may hold anything.

    Args:
      config: the front end.
      waveforms: [B, S], samples in [-1, 1] at `config.sample_rate`, right-padded.
      lengths: [B], true lengths in samples, at most S.
      constants: `mel_matrix` [F, M] and `window` [frame_length], if the config says that the checkpoint stores them.

    Returns:
      features: [B, T, M], zero beyond each utterance's frames.
      mask: [B, T], True at real frames.

    Raises:
      ConfigError: the config asks for stored constants and they were not given.
      TypeError: the waveforms are not floats, or the lengths are not integers.
      ValueError: the waveforms are not [B, S], or the lengths not [B].

    Reference: `torchaudio.compliance.kaldi.fbank`, `torchaudio.transforms.MelSpectrogram`,
      `speechbrain.lobes.features.Fbank` with
      `speechbrain.processing.features.InputNormalization(norm_type="sentence", std_norm=False)`, NeMo's
      `FilterbankFeatures`.
    """
    features, mask = log_mels(config, waveforms, lengths, constants)
    if config.top_db is not None:
        peak = jnp.max(jnp.where(mask[..., None], features, -jnp.inf), axis=(1, 2), keepdims=True)
        features = jnp.maximum(features, peak - dynamic_range(config))
    features = _normalize(config, features, mask)
    n_frames = mask.shape[1]
    blank = seen_count(config, n_frames) - n_frames
    features = jnp.pad(jnp.where(mask[..., None], features, 0), ((0, 0), (0, blank), (0, 0)))
    return features, jnp.pad(mask, ((0, 0), (0, blank)))


def log_mels(
    config: FbankConfig,
    waveforms: Float[AnyArray, "batch samples"],
    lengths: Int[AnyArray, " batch"],
    constants: Mapping[str, AnyArray] | None = None,
) -> tuple[Float[Array, "batch frames mels"], Bool[Array, "batch frames"]]:
    """Computes the part of `fbank` that is local in time: log energies, before range limit and normalisation."""
    shape, mel = _choose_constants(config, constants)
    waveforms, lengths = jnp.asarray(waveforms), jnp.asarray(lengths)
    _check_batch(waveforms, lengths)
    mask = length_mask(frame_count(config, lengths), frame_count(config, waveforms.shape[1]))
    frames = frame(config, waveforms, lengths) * config.waveform_scale
    power = power_spectrum(config, frames, jnp.asarray(shape, frames.dtype))
    energy = jnp.dot(power, jnp.asarray(mel, power.dtype), precision=lax.Precision.HIGHEST)
    energy = energy + config.floor if config.floor_mode == "add" else jnp.maximum(energy, config.floor)
    return (10.0 * jnp.log10(energy) if config.log == "db" else jnp.log(energy)), mask


def _check_batch(waveforms: Array, lengths: Array) -> None:
    """Refuses what would give wrong features without an error. Only shapes and dtypes are looked at, so jit is free."""
    if waveforms.ndim != 2:
        raise ValueError(
            f"waveforms have shape {waveforms.shape}; expected [batch, samples]: waveform[None] is a batch"
        )
    if not jnp.issubdtype(waveforms.dtype, jnp.floating):
        raise TypeError(f"waveforms are {waveforms.dtype}; expected float32 in [-1, 1]: divide 16-bit samples by 32768")
    if lengths.shape != waveforms.shape[:1]:
        raise ValueError(f"lengths have shape {lengths.shape}; expected one for each waveform, {waveforms.shape[:1]}")
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"lengths are {lengths.dtype}; expected integers, numbers of samples: multiply relative lengths by "
            f"{waveforms.shape[1]} and round them"
        )


def dynamic_range(config: FbankConfig) -> float:
    """Returns `top_db` on the scale of the features, or infinity if the model does not limit the range."""
    if config.top_db is None:
        return math.inf
    return config.top_db if config.log == "db" else config.top_db * math.log(10) / 10


def deviation(config: FbankConfig, variance: Bands, count: Float[Array, "batch 1"]) -> Bands:
    """Returns the divisor of `mean_std` and `instance` normalisation, from the biased variance of `count` frames."""
    if config.normalization == "instance":
        return jnp.sqrt(variance + STD_EPSILON)
    variance = variance * count / jnp.maximum(count - 1, 1)
    constant = variance == 0  # the gradient of a root at zero is infinite
    return jnp.where(constant, 0, jnp.sqrt(jnp.where(constant, 1, variance))) + STD_EPSILON


def seen_mask(config: FbankConfig, mask: Bool[AnyArray, "batch frames"]) -> Bool[Array, "batch frames"]:
    """Returns a mask of the frames that the convolutions see: real frames and the blank frames of the front end."""
    mask = jnp.asarray(mask)
    if seen_count(config, 1) == 1 and config.pad_to == 1:
        return mask
    return length_mask(seen_count(config, mask_lengths(mask)), mask.shape[1])


def _choose_constants(config: FbankConfig, given: Mapping[str, AnyArray] | None) -> tuple[AnyArray, AnyArray]:
    """Returns window and mel matrix."""
    if config.mel_source == "computed":
        return window(config), mel_matrix(config)
    if not given:
        raise ConfigError(
            "this front end takes its mel matrix and window from the checkpoint: pass variables['constants']"
        )
    return given["window"], given["mel_matrix"]


def _normalize(config: FbankConfig, features: Frames, mask: Mask) -> Frames:
    if config.normalization == "none":
        return features
    features = features - masked_mean(features, mask)[:, None]
    if config.normalization == "mean":
        return features
    # Subtract once more: in a constant band, the rounding error that is left is divided by little more than 1e-5.
    features = features - masked_mean(features, mask)[:, None]
    variance = masked_mean(jnp.square(features), mask)
    count = mask_lengths(mask).astype(features.dtype)[:, None]
    return features / deviation(config, variance, count)[:, None]
