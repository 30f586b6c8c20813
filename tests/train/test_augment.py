"""Tests of augmentation: the effect of each change, and that the result depends only on (seed, step, example)."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.train.augment import augment, fast_size, spec_augment
from ecapa_jax.train.config import AugmentConfig
from ecapa_jax.train.data.pipeline import Noises
from ecapa_jax.train.rooms import make_room_bank, simulate_rooms

RATE, ROWS, SAMPLES = 16000, 8, 8000


@functools.cache
def _compiled(config):
    return jax.jit(functools.partial(augment, config, RATE))


def augment_batch(config, waveforms, step=0, banks=None, **batch):
    batch = {"lengths": jnp.full(len(waveforms), waveforms.shape[1], jnp.int32), **batch}
    key = jax.random.fold_in(jax.random.key(0), step)
    return np.asarray(_compiled(config)(banks or {}, key, jnp.asarray(waveforms), batch))


@pytest.fixture(scope="module")
def speech():
    generator = np.random.default_rng(0)
    return (0.1 * generator.standard_normal((ROWS, SAMPLES))).astype(np.float32)


@pytest.fixture(scope="module")
def rooms():
    return {"rooms": jnp.asarray(make_room_bank(AugmentConfig(probability=1.0, rooms=4), RATE, 0)["rooms"])}


NOISE_ONLY = {"probability": 1.0, "reverberation": 0.0, "reverberation_noise": 0.0}


def test_disabled_augmentation_changes_nothing(speech):
    np.testing.assert_array_equal(augment_batch(AugmentConfig(), speech), speech)


@pytest.mark.parametrize("kind", ["noise", "babble"])
def test_noise_has_the_requested_snr(speech, kind):
    shares = {"noise": 1.0, "babble": 0.0} if kind == "noise" else {"noise": 0.0, "babble": 1.0}
    config = AugmentConfig(**NOISE_ONLY, **shares, noise_snr=(7.0, 7.0), babble_snr=(7.0, 7.0))
    added = augment_batch(config, speech) - speech
    ratio = 10 * np.log10(np.mean(speech**2, axis=1) / np.mean(added**2, axis=1))
    np.testing.assert_allclose(ratio, 7.0, atol=0.02)
    assert len({row.tobytes() for row in added}) == ROWS


def test_noises_of_a_folder_are_mixed_in(speech, tmp_path):
    import soundfile

    for name in ("noise", "music"):
        (tmp_path / name).mkdir()
        level = {"noise": 0.1, "music": 0.2}[name]
        soundfile.write(tmp_path / name / "x.wav", level * np.ones(3 * SAMPLES), RATE)
    config = AugmentConfig(
        **NOISE_ONLY, noise=1.0, music=1.0, musan=str(tmp_path), noise_snr=(0.0, 0.0), music_snr=(10.0, 10.0)
    )
    noises = Noises(config, SAMPLES, RATE)
    crops = [noises.crop(number) for number in range(ROWS)]
    kinds = np.array([kind for _, kind in crops])
    assert set(kinds) == {0, 1}
    batch = {"noise": jnp.asarray([crop for crop, _ in crops]), "noise_kind": jnp.asarray(kinds)}
    added = augment_batch(config, speech, **batch) - speech
    ratio = 10 * np.log10(np.mean(speech**2, axis=1) / np.mean(added**2, axis=1))
    np.testing.assert_allclose(ratio, np.where(kinds == 1, 10.0, 0.0), atol=0.05)
    with pytest.raises(AudioError, match="noise/ folder"):
        Noises(dataclasses.replace(config, musan=str(tmp_path / "noise")), SAMPLES, RATE)


def test_reverberation_is_a_convolution(speech, rooms):
    config = AugmentConfig(probability=1.0, noise=0.0, reverberation=1.0, reverberation_noise=0.0)
    wet = augment_batch(config, speech, banks=rooms)
    for row in range(ROWS):
        candidates = [
            np.convolve(speech[row].astype(np.float64), room)[:SAMPLES] for room in np.asarray(rooms["rooms"])
        ]
        assert min(np.abs(wet[row] - candidate).max() for candidate in candidates) < 1e-5


def test_augmentation_depends_only_on_step_and_row(speech, rooms):
    """Equal steps give equal batches, and other steps give other batches. Without babble, rows are independent."""
    config = AugmentConfig(
        probability=0.7, band_probability=0.5, telephone_probability=0.3, drop_probability=0.5, drop_samples=500,
        gain_db=(-6.0, 6.0),
    )  # fmt: skip
    first = augment_batch(config, speech, step=3, banks=rooms)
    np.testing.assert_array_equal(first, augment_batch(config, speech, step=3, banks=rooms))
    assert np.abs(first - augment_batch(config, speech, step=4, banks=rooms)).max() > 0.01
    mates = speech.copy()
    mates[1:] = mates[1:][::-1]
    np.testing.assert_allclose(augment_batch(config, mates, step=3, banks=rooms)[0], first[0], atol=1e-6)


def test_padding_stays_silent(speech, rooms):
    lengths = jnp.arange(1000, 1000 + 800 * ROWS, 800)
    config = AugmentConfig(probability=1.0, band_probability=1.0, gain_db=(3.0, 3.0))
    out = augment_batch(config, speech, banks=rooms, lengths=lengths)
    for row, length in enumerate(np.asarray(lengths)):
        assert not out[row, length:].any()
        assert out[row, :length].any()


def test_telephone_removes_low_and_high_frequencies(speech):
    out = augment_batch(AugmentConfig(telephone_probability=1.0), speech)
    power = np.mean(np.abs(np.fft.rfft(out, axis=1)) ** 2, axis=0)
    band = lambda low, high: power[int(low / 2) : int(high / 2)].mean()  # noqa: E731 (2 Hz a bin)
    assert 10 * np.log10(band(20, 200) / band(600, 3000)) < -20
    assert 10 * np.log10(band(4500, 7500) / band(600, 3000)) < -20


def test_gain_and_peaks_are_limited(speech):
    louder = augment_batch(AugmentConfig(gain_db=(6.0, 6.0)), speech)
    np.testing.assert_allclose(louder, speech * 10 ** (6 / 20), rtol=1e-5)
    np.testing.assert_allclose(
        np.abs(augment_batch(AugmentConfig(peak_normalize=True), speech)).max(axis=1), 1, atol=1e-4
    )


def test_spec_augment_masks_frames_and_bands_within_the_limits():
    config = AugmentConfig(spec_time=2, spec_time_width=5, spec_frequency=1, spec_frequency_width=4)
    features = jnp.ones((ROWS, 60, 20))
    mask = jnp.arange(60)[None] < jnp.array([[40]] * ROWS)
    masked = jax.jit(functools.partial(spec_augment, config))
    out = np.asarray(masked(jax.random.key(1), jnp.arange(ROWS), features, mask))
    frames, bands = (out == 0).all(axis=2), (out == 0).all(axis=1)
    assert frames.any()
    assert bands.any()
    assert (frames.sum(axis=1) <= 10).all()
    assert (bands.sum(axis=1) <= 4).all()
    assert not frames[:, 46:].any()
    again = masked(jax.random.key(1), np.arange(ROWS)[3:5], features[3:5], mask[3:5])
    np.testing.assert_array_equal(again, out[3:5])  # a micro-batch has the masks of the whole batch


def test_energy_of_simulated_rooms_decays():
    """A later tenth of a second has less energy than the first."""
    for room in simulate_rooms(6, RATE, np.random.default_rng(0)):
        energy = np.square(room[np.argmax(np.abs(room)) :])
        tenth = RATE // 10
        assert energy[:tenth].sum() > 3 * energy[2 * tenth : 3 * tenth].sum()
        assert np.isfinite(room).all()


def test_rooms_come_from_a_folder_and_start_at_their_direct_sound(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "late.wav", np.concatenate([np.zeros(700), [0.9], 0.1 * np.ones(50)]), RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    bank = make_room_bank(AugmentConfig(probability=1.0, rirs=str(tmp_path)), RATE, 0)["rooms"]
    assert bank.shape[0] == 1
    assert np.argmax(np.abs(bank[0])) == 0
    assert np.sum(bank[0] ** 2) == pytest.approx(1)
    with pytest.raises(ConfigError, match="holds no usable impulse response"):
        make_room_bank(AugmentConfig(probability=1.0, rirs=str(tmp_path / "none")), RATE, 0)


@pytest.mark.parametrize("least", [1, 2, 3, 100, 16000, 48001])
def test_fast_fft_sizes(least):
    size = fast_size(least)
    assert least <= size < 1.34 * least + 1
    while size % 3 == 0:
        size //= 3
    assert size & (size - 1) == 0
