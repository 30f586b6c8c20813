"""Waveform to overlapping frames to power spectrum."""

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
    """Samples that the first frame begins before the waveform."""
    if config.framing == "snip_edges":
        return 0
    if config.framing == "kaldi_reflect":
        return config.frame_length // 2 - config.frame_shift // 2
    return config.fft_size // 2


def frame_count(config: FbankConfig, n_samples: Count) -> Count:
    """Real frames of an utterance of `n_samples`; works on ints and on integer arrays.

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
    """Frames that the network's convolutions see of an utterance with `n_frames` real ones: `pad_to`'s included."""
    n_frames = n_frames + (config.framing == "center_zeros_floor")
    return n_frames if config.pad_to == 1 else -(-n_frames // config.pad_to) * config.pad_to


def minimum_samples(config: FbankConfig, n_frames: int) -> int:
    """Fewest samples that give `n_frames` frames and can be padded."""
    shift = config.frame_shift
    if config.framing == "snip_edges":
        return config.frame_length + (n_frames - 1) * shift
    if config.framing == "kaldi_reflect":
        return n_frames * shift - shift // 2
    if config.framing == "center_zeros_floor":
        return n_frames * shift
    # Reflect padding must be shorter than the waveform, as PyTorch has it.
    return max((n_frames - 1) * shift, config.fft_size // 2 + 1 if config.framing == "center_reflect" else 1)


def _mirrored(
    index: Int[Array, "*rows columns"], ends: Int[Array, "batch 1"], *, repeat_edge: bool
) -> Int[Array, "batch columns"]:
    """The sample that stands at `index` when the waveform goes on as its own mirror image."""
    period = jnp.maximum(2 * ends - (0 if repeat_edge else 2), 1)
    index = index % period
    return jnp.minimum(index, period - index - repeat_edge)


def _extend(
    config: FbankConfig, waveforms: Float[Array, "batch samples"], lengths: Int[Array, " batch"], right: int
) -> Float[Array, "batch extended"]:
    """Adds the samples before the first and after each utterance's true end that its frames reach."""
    left = _left_padding(config)
    padded = jnp.pad(waveforms, ((0, 0), (left, right)))
    if not config.framing.endswith("reflect"):
        return padded
    ends, repeat_edge = lengths[:, None], config.framing == "kaldi_reflect"
    index = _mirrored(jnp.arange(-left, 0), ends, repeat_edge=repeat_edge)
    before = jnp.take_along_axis(waveforms, index, axis=1)
    index = _mirrored(ends + jnp.arange(right), ends, repeat_edge=repeat_edge)
    after = jnp.take_along_axis(waveforms, index, axis=1)
    place = jax.vmap(lambda row, tail, start: lax.dynamic_update_slice(row, tail, (start,)))
    return place(padded, after, lengths + left).at[:, :left].set(before)


def _emphasize(
    config: FbankConfig, waveforms: Float[Array, "batch samples"], lengths: Int[Array, " batch"]
) -> Float[Array, "batch samples"]:
    """Pre-emphasis of whole waveforms that are zero beyond their ends, and stay so."""
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
    """Overlapping frames, by slicing whole hops: no gather of the waveform.

    Padding is sanitised here, once: whatever stands beyond an utterance's length, NaN included, is replaced by zero.
    """
    shift, size, left = config.frame_shift, _frame_size(config), _left_padding(config)
    n_frames = frame_count(config, waveforms.shape[1])
    hops = -(-size // shift)
    # Enough for the last frame, which starts at most a hop beyond the waveform; constant: sizes may be symbols.
    right = max((hops + 1) * shift - left, size)
    clean = jnp.where(length_mask(lengths, waveforms.shape[1]), waveforms, 0)
    extended = _extend(config, _emphasize(config, clean, lengths), lengths, right)
    rows = extended[:, : (n_frames + hops - 1) * shift].reshape(-1, n_frames + hops - 1, shift)
    parts = [rows[:, hop : hop + n_frames] for hop in range(hops)]
    return jnp.concatenate(parts, axis=-1)[..., :size]


def power_spectrum(
    config: FbankConfig, frames: Float[Array, "batch frames frame_size"], window: Float[Array, " frame_length"]
) -> Float[Array, "batch frames bins"]:
    """DC removal, pre-emphasis by frame, window and squared magnitude of each frame.

    Reference: `torchaudio.compliance.kaldi` (`_get_window`); the sample before a frame's first is the first itself.
      `torch.stft`: a window shorter than the FFT stands in its middle.
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
