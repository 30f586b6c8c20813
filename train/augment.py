"""Augmentation of a batch on the device. Every random number is a function of (seed, step, example).

Letters: B batch, S samples, L samples of an impulse response, T frames, M mel bands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ecapa_jax.train.config import AugmentConfig

Banks = dict[str, Any]
"""rooms: [n, L] float32 impulse responses that start at their direct sound, of unit energy.
teacher: the arrays of a `TeacherBundle`, if a bundle is the teacher."""

KINDS = ("none", "noise", "babble", "reverberation", "reverberation_noise", "mixture")
NOISE, MUSIC = 0, 1  # of Batch["noise_kind"]

Wave = Float[Array, " samples"]


def step_keys(seed: int, step: Int[Array, ""]) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Returns the keys for the waveforms and for the features of a step."""
    waveform_key, features_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return waveform_key, features_key


def augment_step(
    config: AugmentConfig, sample_rate: int, seed: int, banks: Banks, step: Int[Array, ""], batch: dict[str, Array]
) -> Float[Array, "batch samples"]:
    """Augments the waveforms of the batch of a step.

    Args:
      config, sample_rate, banks: as `augment` takes them.
      seed: seed of the run.
      step: number of the step.
      batch: as `augment` takes it, with `waveforms`, [B, S] int16 or floats in [-1, 1].
    """
    return augment(config, sample_rate, banks, step_keys(seed, step)[0], to_float(batch["waveforms"]), batch)


def to_float(waveforms: Array) -> Float[Array, "batch samples"]:
    """Converts 16-bit samples to floats in [-1, 1]; returns floats as they are."""
    if jnp.issubdtype(waveforms.dtype, jnp.integer):
        return waveforms.astype(jnp.float32) / 32768
    return waveforms


def augment(
    config: AugmentConfig,
    sample_rate: int,
    banks: Banks,
    key: PRNGKeyArray,
    waveforms: Float[Array, "batch samples"],
    batch: dict[str, Array],
) -> Float[Array, "batch samples"]:
    """Adds noise, rooms, channels and changes of level to a batch.

    Babble is made from the examples in `waveforms`, even if they are only a part of the whole batch.

    Args:
      config: which augmentations, how often and how strong; without any, the waveforms are returned unchanged.
      sample_rate: sample rate in Hz.
      banks: impulse responses.
      key: key of this step, into which the row of each example is folded.
      waveforms: [B, S], in [-1, 1].
      batch: `lengths`; `noise` and `noise_kind` if a folder of noises is used; `rows` [B], the position of each example
        in the whole batch, if this is only a part of it.
    """
    rows = batch.get("rows", jnp.arange(waveforms.shape[0]))
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(rows)
    valid = rows[:, None] * 0 + jnp.arange(waveforms.shape[1]) < batch["lengths"][:, None]
    x = waveforms
    if config.probability:
        kinds = jax.vmap(functools.partial(_draw_kind, config))(keys)
        x = _reverberate(config, banks, keys, kinds, x)
        x = _add_noises(config, keys, kinds, x, waveforms, batch)
    for name, chance, change in (
        ("_band_limited", config.band_probability, functools.partial(_limit_band, sample_rate)),
        ("_telephone", config.telephone_probability, functools.partial(_apply_telephone, sample_rate)),
        ("_dropped", config.drop_probability, functools.partial(_drop_samples, config)),
    ):
        x = _apply_sometimes(name, change, chance, keys, x)
    if config.peak_normalize:
        x = x / (jnp.max(jnp.abs(x), axis=1, keepdims=True) + 1e-6)
    if config.gain_db != (0.0, 0.0):
        x = x * jax.vmap(lambda k: 10 ** (_draw_uniform(k, "gain", config.gain_db) / 20))(keys)[:, None]
    return jnp.where(valid, x, 0)


def spec_augment(
    config: AugmentConfig,
    key: PRNGKeyArray,
    rows: Int[Array, " batch"],
    features: Float[Array, "batch frames mels"],
    mask: Bool[Array, "batch frames"],
) -> Float[Array, "batch frames mels"]:
    """Sets bands of frames and of mel channels to zero, which is the mean of mean-normalised features.

    Args:
      config: number and widths of the masks.
      key: key of this step.
      rows: [B], position of each example in the whole batch.
      features: [B, T, M].
      mask: [B, T].

    Reference: Park et al. 2019 (SpecAugment), section 2, without time warping.
    """
    if not (config.spec_time or config.spec_frequency):
        return features

    def draw_mask(
        row: Int[Array, ""], x: Float[Array, "frames mels"], frames: Int[Array, ""]
    ) -> Bool[Array, "frames mels"]:
        example_key = jax.random.fold_in(key, row)
        time = _draw_gaps(_fold_name(example_key, "time"), config.spec_time, config.spec_time_width, x.shape[0], frames)
        mels = _draw_gaps(
            _fold_name(example_key, "mels"), config.spec_frequency, config.spec_frequency_width, x.shape[1], x.shape[1]
        )
        return time[:, None] | mels[None, :]

    gaps = jax.vmap(draw_mask)(rows, features, jnp.sum(mask, axis=1))
    return jnp.where(gaps, 0, features)


def _draw_gaps(key: PRNGKeyArray, number: int, width: int, size: int, end: Any) -> Bool[Array, " size"]:
    """Draws `number` gaps of up to `width` positions below `end`, as a mask."""
    if not number:
        return jnp.zeros(size, bool)
    widths = jax.random.randint(_fold_name(key, "width"), (number,), 0, width + 1)
    starts = jax.random.uniform(_fold_name(key, "start"), (number,)) * jnp.maximum(end - widths, 0)
    place = jnp.arange(size)[:, None]
    return jnp.any((place >= starts) & (place < starts + widths), axis=1)


def _draw_kind(config: AugmentConfig, key: PRNGKeyArray) -> Int[Array, ""]:
    """Draws which of `KINDS` an example gets."""
    # The loader decides between noise and music, because it reads them.
    noise = config.noise + config.music
    shares = [noise, config.babble, config.reverberation, config.reverberation_noise]
    relative = jnp.array(shares + [config.mixture] if config.mixture else shares)
    chances = jnp.concatenate([jnp.array([1 - config.probability]), config.probability * relative / jnp.sum(relative)])
    return jax.random.categorical(_fold_name(key, "kind"), jnp.log(chances))


def _is_kind(kinds: Int[Array, " batch"], *names: str) -> Bool[Array, "batch 1"]:
    return jnp.isin(kinds, jnp.array([KINDS.index(name) for name in names]))[:, None]


def _reverberate(
    config: AugmentConfig, banks: Banks, keys: Array, kinds: Array, x: Float[Array, "batch samples"]
) -> Float[Array, "batch samples"]:
    if not (config.reverberation or config.reverberation_noise):
        return x
    rooms = banks["rooms"]
    chosen = jax.vmap(lambda k: jax.random.randint(_fold_name(k, "room"), (), 0, rooms.shape[0]))(keys)
    wet = jax.vmap(_convolve)(x, rooms[chosen])
    return jnp.where(_is_kind(kinds, "reverberation", "reverberation_noise"), wet, x)


def _add_noises(
    config: AugmentConfig,
    keys: Array,
    kinds: Array,
    x: Float[Array, "batch samples"],
    clean: Float[Array, "batch samples"],
    batch: dict[str, Array],
) -> Float[Array, "batch samples"]:
    generated = jax.vmap(_draw_noise, in_axes=(0, None))(keys, x.shape[1])
    noise, music = generated, jnp.zeros(x.shape[0], bool)
    if config.musan:
        noise = batch["noise"].astype(x.dtype) / 32768
        music = batch["noise_kind"] == MUSIC
    snr = jax.vmap(lambda k, is_music: _draw_snr(config, k, is_music))(keys, music)
    mixed = _mix(x, noise, snr)
    x = jnp.where(_is_kind(kinds, "noise", "reverberation_noise"), mixed, x)
    if config.babble:
        voices, snr = (
            _make_babble(config, keys, clean),
            jax.vmap(lambda k: _draw_uniform(k, "snr", config.babble_snr))(keys),
        )
        x = jnp.where(_is_kind(kinds, "babble"), _mix(x, voices, snr), x)
    if config.mixture:
        snr = jax.vmap(lambda k: _draw_uniform(k, "snr", config.mixture_snr))(keys)
        x = jnp.where(_is_kind(kinds, "mixture"), _mix(x, _other_examples(keys, clean), snr), x)
    return x


def _other_examples(keys: Array, clean: Float[Array, "batch samples"]) -> Float[Array, "batch samples"]:
    """Returns another example of the batch for each example, the same number of rows away for all."""
    n_rows = clean.shape[0]
    shift = 1 + jax.random.randint(_fold_name(keys[0], "other"), (), 0, max(n_rows - 1, 1))
    return jnp.roll(clean, shift, axis=0)


def _draw_snr(config: AugmentConfig, key: PRNGKeyArray, is_music: Bool[Array, ""]) -> Float[Array, ""]:
    return jnp.where(is_music, _draw_uniform(key, "snr", config.music_snr), _draw_uniform(key, "snr", config.noise_snr))


def _mix(
    x: Float[Array, "batch samples"], noise: Float[Array, "batch samples"], snr: Float[Array, " batch"]
) -> Float[Array, "batch samples"]:
    """Adds noise to `x` at a signal-to-noise ratio in dB, measured over the crop; silence stays silent."""
    power, noise_power = (jnp.mean(jnp.square(signal), axis=1, keepdims=True) for signal in (x, noise))
    return x + noise * jnp.sqrt(power / jnp.maximum(noise_power, 1e-12)) * 10 ** (-snr[:, None] / 20)


def _make_babble(
    config: AugmentConfig, keys: Array, clean: Float[Array, "batch samples"]
) -> Float[Array, "batch samples"]:
    """Sums other examples of the batch, each at unit power."""
    fewest, most = config.babble_voices
    n_rows = clean.shape[0]
    unit = clean * jax.lax.rsqrt(jnp.mean(jnp.square(clean), axis=1, keepdims=True) + 1e-12)
    numbers = jax.vmap(lambda k: jax.random.randint(_fold_name(k, "voices"), (), fewest, most + 1))(keys)
    offset = jax.random.randint(_fold_name(keys[0], "offset"), (), 0, n_rows)

    def add(voice: Array, total: Array) -> Array:
        shift = 1 + (offset + voice) % jnp.maximum(n_rows - 1, 1)
        return total + jnp.where((voice < numbers)[:, None], jnp.roll(unit, shift, axis=0), 0)

    return jax.lax.fori_loop(0, most, add, jnp.zeros_like(unit))


def _draw_noise(key: PRNGKeyArray, n_samples: int) -> Wave:
    """Draws noise with a spectrum of f^-slope, slope in [0, 2]: white to brown."""
    white = jax.random.normal(_fold_name(key, "noise"), (n_samples,))
    frequency = jnp.maximum(jnp.arange(n_samples // 2 + 1), 1) / n_samples
    shape = frequency ** (-_draw_uniform(key, "slope", (0.0, 2.0)) / 2)
    return jnp.fft.irfft(jnp.fft.rfft(white) * shape, n_samples)


def _convolve(x: Wave, response: Float[Array, " response"]) -> Wave:
    size = fast_size(x.shape[0] + response.shape[0])
    return jnp.fft.irfft(jnp.fft.rfft(x, size) * jnp.fft.rfft(response, size), size)[: x.shape[0]]


def fast_size(least: int) -> int:
    """Returns the smallest 2^a 3^b >= least, for which an FFT is fast."""
    return min(3**b << max(0, -(-least // 3**b) - 1).bit_length() for b in range(4))


def _filter(x: Wave, response: Callable[[Array], Array], sample_rate: int) -> Wave:
    """Filters `x` with zero phase; `response` gives the gain at each frequency in Hz."""
    size = fast_size(x.shape[0] + sample_rate // 10)  # room for the filter to ring
    frequency = jnp.arange(size // 2 + 1) * (sample_rate / size)
    return jnp.fft.irfft(jnp.fft.rfft(x, size) * response(frequency), size)[: x.shape[0]]


def _limit_band(sample_rate: int, key: PRNGKeyArray, x: Wave) -> Wave:
    low = jnp.exp(_draw_uniform(key, "low", (jnp.log(50.0), jnp.log(400.0))))
    high = jnp.exp(_draw_uniform(key, "high", (jnp.log(2000.0), jnp.log(7000.0))))
    tilt = _draw_uniform(key, "tilt", (-3.0, 3.0))  # dB an octave, about 1 kHz
    cut = jax.random.bernoulli(_fold_name(key, "cut"), 0.5, (2,))

    def gain(frequency: Array) -> Array:
        below = jnp.where(cut[0], _slope(low / jnp.maximum(frequency, 1)), 1)
        above = jnp.where(cut[1], _slope(frequency / high), 1)
        return below * above * 10 ** (tilt * jnp.log2(jnp.clip(frequency, 60, 8000) / 1000) / 20)

    return _filter(x, gain, sample_rate)


def _apply_telephone(sample_rate: int, key: PRNGKeyArray, x: Wave) -> Wave:
    """Limits the band to 300 to 3400 Hz and applies 8-bit mu-law (ITU-T G.711) at full range."""
    narrow = _filter(x, lambda f: _slope(300 / jnp.maximum(f, 1)) * _slope(f / 3400), sample_rate)
    peak = jnp.max(jnp.abs(narrow)) + 1e-6
    pressed = jnp.sign(narrow) * jnp.log1p(255 * jnp.abs(narrow) / peak) / jnp.log(256.0)
    steps = jnp.round(pressed * 127) / 127
    return jnp.sign(steps) * jnp.expm1(jnp.abs(steps) * jnp.log(256.0)) / 255 * peak


def _slope(ratio: Array) -> Array:
    """Returns the gain of a tenth-order Butterworth filter at `ratio` times its corner frequency."""
    return jax.lax.rsqrt(1 + ratio**20)


def _drop_samples(config: AugmentConfig, key: PRNGKeyArray, x: Wave) -> Wave:
    return jnp.where(
        _draw_gaps(_fold_name(key, "drop"), config.drops, config.drop_samples, x.shape[0], x.shape[0]), 0, x
    )


def _apply_sometimes(name: str, change: Callable[[Array, Wave], Wave], chance: float, keys: Array, x: Array) -> Array:
    """Applies a change to each example with a probability; the name seeds the draws, so it must never be edited."""
    if not chance:
        return x
    hit = jax.vmap(lambda k: jax.random.bernoulli(_fold_name(k, name), chance))(keys)
    return jnp.where(hit[:, None], jax.vmap(change)(keys, x), x)


def _draw_uniform(key: PRNGKeyArray, name: str, limits: Any) -> Float[Array, ""]:
    return jax.random.uniform(_fold_name(key, name), (), minval=limits[0], maxval=limits[1])


def _fold_name(key: PRNGKeyArray, name: str) -> PRNGKeyArray:
    """Makes an independent key for one draw, so that changing one augmentation does not change the draws of others."""
    return jax.random.fold_in(
        key, sum(ord(letter) << (7 * index % 24) for index, letter in enumerate(name)) & 0x7FFFFFFF
    )
