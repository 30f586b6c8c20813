"""Waveform to overlapping frames to power spectrum."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ecapa_jax.config import FbankConfig
from ecapa_jax.features.constants import window
from ecapa_jax.masks import length_mask

Samples = TypeVar("Samples", int, Array)


def _frame_size(config: FbankConfig) -> int:
    return config.fft_size if config.framing.startswith("center") else config.frame_length


def _left_padding(config: FbankConfig) -> int:
    """Samples that the first frame begins before the waveform."""
    if config.framing == "snip_edges":
        return 0
    if config.framing == "kaldi_reflect":
        return config.frame_length // 2 - config.frame_shift // 2
    return config.fft_size // 2


def frame_count(config: FbankConfig, n_samples: Samples) -> Samples:
    """Frames of an utterance of `n_samples`; works on ints and on integer arrays.

    Reference: Kaldi's `NumFrames` (feat/feature-window.cc); `torch.stft(center=True)`.
    """
    shift = config.frame_shift
    if config.framing == "snip_edges":
        count = (n_samples - config.frame_length) // shift + 1
        return max(count, 0) if isinstance(count, int) else jnp.maximum(count, 0)
    if config.framing == "kaldi_reflect":
        return (n_samples + shift // 2) // shift
    return n_samples // shift + 1


def minimum_samples(config: FbankConfig, n_frames: int) -> int:
    """Fewest samples that give `n_frames` frames."""
    shift = config.frame_shift
    if config.framing == "snip_edges":
        return config.frame_length + (n_frames - 1) * shift
    if config.framing == "kaldi_reflect":
        return n_frames * shift - shift // 2
    return max((n_frames - 1) * shift, 1)


def _mirrored(index: Int[Array, "*rows columns"], ends: Int[Array, "batch 1"]) -> Int[Array, "batch columns"]:
    """The sample that stands at `index` when the waveform goes on as its own mirror image, edge samples repeated."""
    period = 2 * jnp.maximum(ends, 1)
    index = index % period
    return jnp.minimum(index, period - 1 - index)


def _extend(
    config: FbankConfig, waveforms: Float[Array, "batch samples"], lengths: Int[Array, " batch"], right: int
) -> Float[Array, "batch extended"]:
    """Adds the samples before the first and after each utterance's true end that its frames reach."""
    left = _left_padding(config)
    padded = jnp.pad(waveforms, ((0, 0), (left, right)))
    if config.framing != "kaldi_reflect":
        return padded
    ends = lengths[:, None]
    before = jnp.take_along_axis(waveforms, _mirrored(jnp.arange(-left, 0), ends), axis=1)
    after = jnp.take_along_axis(waveforms, _mirrored(ends + jnp.arange(right), ends), axis=1)
    place = jax.vmap(lambda row, tail, start: lax.dynamic_update_slice(row, tail, (start,)))
    return place(padded, after, lengths + left).at[:, :left].set(before)


def frame(
    config: FbankConfig, waveforms: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> Float[Array, "batch frames frame_size"]:
    """Overlapping frames, by slicing whole hops: no gather of the waveform.

    Padding is sanitised here, once: whatever stands beyond an utterance's length, NaN included, is replaced by zero.
    """
    shift, size, left = config.frame_shift, _frame_size(config), _left_padding(config)
    n_frames = frame_count(config, waveforms.shape[1])
    hops = -(-size // shift)
    right = max((n_frames + hops) * shift - waveforms.shape[1] - left, size)
    clean = jnp.where(length_mask(lengths, waveforms.shape[1]), waveforms, 0)
    extended = _extend(config, clean, lengths, right)
    rows = extended[:, : (n_frames + hops - 1) * shift].reshape(-1, n_frames + hops - 1, shift)
    parts = [rows[:, hop : hop + n_frames] for hop in range(hops)]
    return jnp.concatenate(parts, axis=-1)[..., :size]


def power_spectrum(
    config: FbankConfig, frames: Float[Array, "batch frames frame_size"]
) -> Float[Array, "batch frames bins"]:
    """DC removal, pre-emphasis, window and squared magnitude of each frame.

    Reference: `torchaudio.compliance.kaldi` (`_get_window`); the sample before a frame's first is the first itself.
    """
    if config.remove_dc:
        frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
    if config.preemphasis:
        before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = frames - config.preemphasis * before
    spectrum = jnp.fft.rfft(frames * jnp.asarray(window(config), frames.dtype), n=config.fft_size)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)
