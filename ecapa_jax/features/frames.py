"""Cuts a waveform into overlapping frames and computes their power spectra."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ecapa_jax.config import FbankConfig
from ecapa_jax.masks import length_mask

Count = TypeVar("Count", int, Array)


def _is_centred(config: FbankConfig) -> bool:
    return config.framing.startswith("center")


def _frame_size(config: FbankConfig) -> int:
    return config.fft_size if _is_centred(config) else config.frame_length


def _left_padding(config: FbankConfig) -> int:
    """Returns how many samples before the waveform the first frame begins."""
    if config.framing == "snip_edges":
        return 0
    if config.framing == "kaldi_reflect":
        return config.frame_length // 2 - config.frame_shift // 2
    return config.fft_size // 2


def frame_count(config: FbankConfig, n_samples: Count) -> Count:
    """Returns the number of real frames of an utterance of `n_samples`, an int or an integer array.

    Reference: Kaldi's `NumFrames` (feat/feature-window.cc); `torch.stft(center=True)`; NeMo's
      `FilterbankFeatures.get_seq_len`.
    """
    shift = config.frame_shift
    if config.framing == "snip_edges":
        count = (n_samples - config.frame_length) // shift + 1
        return jnp.maximum(count, 0) if isinstance(count, jax.Array) else max(count, 0)
    if config.framing == "kaldi_reflect":
        return (n_samples + shift // 2) // shift
    return n_samples // shift + (config.framing != "center_zeros_floor")


def seen_count(config: FbankConfig, n_frames: Count) -> Count:
    """Returns how many frames the convolutions see of an utterance with `n_frames` real ones; blank frames count."""
    n_frames = n_frames + (config.framing == "center_zeros_floor")
    return n_frames if config.pad_to == 1 else -(-n_frames // config.pad_to) * config.pad_to


def minimum_samples(config: FbankConfig, n_frames: int) -> int:
    """Returns the fewest samples that make `n_frames` frames and can be padded."""
    shift = config.frame_shift
    if config.framing == "snip_edges":
        return config.frame_length + (n_frames - 1) * shift
    if config.framing == "kaldi_reflect":
        return n_frames * shift - shift // 2
    if config.framing == "center_zeros_floor":
        return n_frames * shift
    # Reflect padding must be shorter than the waveform, as in PyTorch.
    return max((n_frames - 1) * shift, config.fft_size // 2 + 1 if config.framing == "center_reflect" else 1)


def _mirror_index(
    index: Int[Array, "*rows columns"], ends: Int[Array, "batch 1"], *, repeat_edge: bool
) -> Int[Array, "batch columns"]:
    """Returns the position of the sample that reflect padding puts at `index`."""
    period = jnp.maximum(2 * ends - (0 if repeat_edge else 2), 1)
    index = index % period
    return jnp.minimum(index, period - index - repeat_edge)


def _extend(
    config: FbankConfig, waveforms: Float[Array, "batch samples"], lengths: Int[Array, " batch"], right: int
) -> Float[Array, "batch extended"]:
    """Adds the samples that the frames need before the start and after the true end of each utterance."""
    left = _left_padding(config)
    padded = jnp.pad(waveforms, ((0, 0), (left, right)))
    if not config.framing.endswith("reflect"):
        return padded
    ends, repeat_edge = lengths[:, None], config.framing == "kaldi_reflect"
    index = _mirror_index(jnp.arange(-left, 0), ends, repeat_edge=repeat_edge)
    before = jnp.take_along_axis(waveforms, index, axis=1)
    index = _mirror_index(ends + jnp.arange(right), ends, repeat_edge=repeat_edge)
    after = jnp.take_along_axis(waveforms, index, axis=1)
    place = jax.vmap(lambda row, tail, start: lax.dynamic_update_slice(row, tail, (start,)))
    return place(padded, after, lengths + left).at[:, :left].set(before)


def _emphasize(
    config: FbankConfig, waveforms: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> Float[Array, "batch samples"]:
    """Applies pre-emphasis to whole waveforms, which are zero beyond their ends and remain so."""
    if not config.preemphasis or config.preemphasis_mode == "frame":
        return waveforms
    first = jnp.zeros_like(waveforms[:, :1])
    if config.preemphasis_mode == "signal_reflect":
        first = jnp.take_along_axis(waveforms, jnp.clip(lengths - 1, 0, 1)[:, None], axis=1)
    before = jnp.concatenate([first, waveforms[:, :-1]], axis=1)
    real = length_mask(lengths, waveforms.shape[1])
    return jnp.where(real, waveforms - config.preemphasis * before, 0)


def frame(
    config: FbankConfig, waveforms: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> Float[Array, "batch frames frame_size"]:
    """Cuts overlapping frames by slicing whole hops, without gathering from the waveform.

    This is where padding is cleaned, once: every sample beyond the length of its utterance, even NaN, becomes zero.
    """
    shift, size, left = config.frame_shift, _frame_size(config), _left_padding(config)
    n_frames = frame_count(config, waveforms.shape[1])
    hops = -(-size // shift)
    # Enough for the last frame, which starts at most one hop after the waveform. The number must not depend on the
    # size of the waveform, which may be symbolic.
    right = max((hops + 1) * shift - left, size)
    clean = jnp.where(length_mask(lengths, waveforms.shape[1]), waveforms, 0)
    extended = _extend(config, _emphasize(config, clean, lengths), lengths, right)
    rows = extended[:, : (n_frames + hops - 1) * shift].reshape(-1, n_frames + hops - 1, shift)
    parts = [rows[:, hop : hop + n_frames] for hop in range(hops)]
    return jnp.concatenate(parts, axis=-1)[..., :size]


def power_spectrum(
    config: FbankConfig, frames: Float[Array, "batch frames frame_size"], window: Float[Array, " frame_length"]
) -> Float[Array, "batch frames bins"]:
    """Removes DC, applies pre-emphasis and the window, and returns the squared magnitudes of each frame.

    Reference: `torchaudio.compliance.kaldi` (`_get_window`), which repeats the first sample of a frame before it;
      `torch.stft`, which centres a window that is shorter than the FFT.
    """
    if config.remove_dc:
        frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
    if config.preemphasis and config.preemphasis_mode == "frame":
        before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = frames - config.preemphasis * before
    if _is_centred(config):
        left = (config.fft_size - config.frame_length) // 2
        window = jnp.pad(window, (left, config.fft_size - config.frame_length - left))
    spectrum = jnp.fft.rfft(frames * window, n=config.fft_size)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)
