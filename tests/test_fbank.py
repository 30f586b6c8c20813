"""Tests of the front end against the float64 oracle and kaldi-native-fbank with every framing, length and padding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import kaldi_native_fbank
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.config import FbankConfig
from ecapa_jax.errors import ConfigError
from ecapa_jax.features.constants import stored_constants
from ecapa_jax.features.fbank import fbank, seen_mask
from ecapa_jax.features.frames import frame_count, minimum_samples, seen_count
from ecapa_jax.presets import (
    KALDI_HAMMING_INT16,
    KALDI_POVEY,
    MEL_INSTANCE,
    MEL_NEMO,
    MEL_NEMO_2_5,
    MEL_TAORUIJIE,
    SPEECHBRAIN_DB,
)
from helpers import oracle, parity

CONFIGS = {
    "3dspeaker": KALDI_POVEY,
    "wespeaker": KALDI_HAMMING_INT16,
    "speechbrain": SPEECHBRAIN_DB,
    "3dspeaker_60_mels": dataclasses.replace(KALDI_POVEY, n_mels=60),
    "speechbrain_60_mels": dataclasses.replace(SPEECHBRAIN_DB, n_mels=60),
    "speechbrain_40_mels": dataclasses.replace(SPEECHBRAIN_DB, n_mels=40),
    "kaldi_reflect": dataclasses.replace(KALDI_POVEY, framing="kaldi_reflect"),
    "kaldi_reflect_int16": dataclasses.replace(KALDI_HAMMING_INT16, framing="kaldi_reflect"),
    "taoruijie": MEL_TAORUIJIE,
    "instance": MEL_INSTANCE,
    "nemo": MEL_NEMO,
    "nemo_2_5": MEL_NEMO_2_5,
    "added_floor": dataclasses.replace(
        KALDI_POVEY,
        framing="center_zeros",
        window="hann",
        mel_scale="htk",
        mel_shape="hz",
        floor=1e-6,
        floor_mode="add",
    ),
}
FRAMINGS = ("3dspeaker", "kaldi_reflect", "speechbrain", "taoruijie", "instance", "nemo", "nemo_2_5")
LENGTHS = (1, 40, 79, 80, 81, 119, 120, 161, 239, 240, 399, 400, 401, 559, 560, 561, 1039, 1040, 3217)

SIZE = 24001
"""All batches have this size, because every new shape is compiled."""


@functools.partial(jax.jit, static_argnums=0)
def _fbank(config: FbankConfig, waveforms: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    return fbank(config, waveforms, lengths, stored_constants(config))


def FBANK(config: FbankConfig, waveforms: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns NumPy arrays, because JAX compiles a program for each slice of its arrays."""
    features, mask = _fbank(config, waveforms, lengths)
    return np.asarray(features), np.asarray(mask)


@pytest.fixture(scope="module")
def signals() -> dict[str, np.ndarray]:
    speech = {name: samples[: SIZE - 1000 * index] for index, (name, samples) in enumerate(parity.recordings().items())}
    assert len(speech) == 6
    first = next(iter(speech.values()))
    return {
        **speech,
        "clipped": parity.clipped(first),
        "zeros_inside": parity.zeros_inside(first),
        "silence": np.zeros(9999, np.float32),
        "constant": np.full(7777, 0.5, np.float32),
        "noise": parity.noise(SIZE),
        "wide_range": parity.wide_range(SIZE - 1),
        "impulse": parity.impulse(5001),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_oracle(name: str, signals: dict[str, np.ndarray]) -> None:
    """All signals are in one batch that is padded with NaN."""
    config = CONFIGS[name]
    features, mask = FBANK(config, *parity.pad_batch(signals.values(), SIZE))
    for row, (signal, waveform) in enumerate(signals.items()):
        frames = int(mask[row].sum())
        error = parity.feature_error(config, features[row, :frames], waveform)
        print(f"{name:<20}{signal:<13} worst {error.worst:.1e} above floor {error.above_floor:.1e} RMS {error.rms:.1e}")
        assert error.worst <= parity.FEATURE_BOUND
        assert error.rms <= 1e-4
        assert not features[row, frames:].any()


@pytest.mark.parametrize("name", FRAMINGS)
def test_every_length_from_one_sample_equals_the_oracle(name: str) -> None:
    config = CONFIGS[name]
    waveforms = [parity.noise(length, seed=length) for length in LENGTHS]
    features, mask = FBANK(config, *parity.pad_batch(waveforms, SIZE))
    assert np.isfinite(features).all()
    for row, waveform in enumerate(waveforms):
        frames = int(mask[row].sum())
        assert frames == _count_frames(config, len(waveform))
        if frames >= config.minimum_frames:
            assert parity.feature_error(config, features[row, :frames], waveform).worst <= parity.FEATURE_BOUND


def _count_frames(config: FbankConfig, n_samples: int) -> int:
    """Counts frames by placing them one by one."""
    if config.framing == "snip_edges":
        return len(range(0, n_samples - config.frame_length + 1, config.frame_shift))
    if config.framing == "kaldi_reflect":
        # Kaldi rounds the duration, in hops, half up.
        return int(np.floor(n_samples / config.frame_shift + 0.5))
    frames = len(range(0, n_samples + 1, config.frame_shift))
    return frames - 1 if config.framing == "center_zeros_floor" else frames


def test_seen_mask_includes_nemo_blank_frames() -> None:
    """NeMo adds blank frames up to a multiple of 16. Since version 2.5, the last STFT frame is also blank."""
    for config, real in ((MEL_NEMO, 16), (MEL_NEMO_2_5, 15)):
        lengths = np.array([400, 2559, 2560, 5000], np.int32)
        mask = FBANK(config, np.zeros((4, 5000), np.float32), lengths)[1]
        assert mask.shape == (4, 32)
        assert mask.sum(1).tolist() == [frame_count(config, int(n)) for n in lengths]
        assert mask.sum(1)[1] == real
        assert seen_mask(config, mask).sum(1).tolist() == [16, 16, 32, 32]
    mask = FBANK(KALDI_POVEY, np.zeros((4, 5000), np.float32), lengths)[1]
    np.testing.assert_array_equal(seen_mask(KALDI_POVEY, mask), mask)


def test_missing_stored_constants_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"variables\['constants'\]"):
        fbank(MEL_NEMO, np.zeros((1, 4000), np.float32), np.array([4000], np.int32))


def test_stored_constants_are_used() -> None:
    waveform = parity.noise(4000)[None]
    theirs = {name: 1.5 * array for name, array in stored_constants(MEL_TAORUIJIE).items()}
    config = dataclasses.replace(MEL_TAORUIJIE, normalization="none", floor=1e-30)
    features, _ = jax.jit(fbank, static_argnums=0)(config, waveform, np.array([4000], np.int32), theirs)
    computed, _ = FBANK(config, waveform, np.array([4000], np.int32))
    # The power spectrum contains the window squared, and the matrix once: three factors of 1.5.
    np.testing.assert_allclose(features - computed, np.full(features.shape, 3 * np.log(1.5)), atol=1e-4)


# Against kaldi-native-fbank


def _kaldi(config: FbankConfig, waveform: np.ndarray) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.window_type = config.window
    options.frame_opts.snip_edges = config.framing == "snip_edges"
    options.mel_opts.num_bins = config.n_mels
    options.mel_opts.low_freq = config.f_min
    options.mel_opts.high_freq = config.f_max
    options.use_energy = False
    computer = kaldi_native_fbank.OnlineFbank(options)
    computer.accept_waveform(config.sample_rate, (waveform * np.float32(config.waveform_scale)).tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(index) for index in range(computer.num_frames_ready)])


@pytest.mark.parametrize(
    "name", ["3dspeaker", "wespeaker", "kaldi_reflect", "kaldi_reflect_int16", "3dspeaker_60_mels"]
)
def test_equals_kaldi_native_fbank(name: str, signals: dict[str, np.ndarray]) -> None:
    """Both results are within the bound of the exact value, so their difference is at most twice the bound."""
    config = dataclasses.replace(CONFIGS[name], normalization="none")
    features, mask = FBANK(config, *parity.pad_batch(signals.values(), SIZE))
    for row, (signal, waveform) in enumerate(signals.items()):
        theirs = _kaldi(config, waveform)
        ours = np.asarray(features[row, : int(mask[row].sum())])
        assert ours.shape == theirs.shape
        error = np.abs(ours - theirs)
        print(f"{name:<20}{signal:<13} worst {error.max():.1e} RMS {np.sqrt(np.mean(error**2)):.1e}")
        assert error.max() <= 2 * parity.FEATURE_BOUND
        assert np.sqrt(np.mean(error**2)) <= 2e-4


@pytest.mark.parametrize("n_samples", [80, 100, 119, 121, 199, 201, 399])
def test_reflection_equals_kaldi_below_one_window(n_samples: int) -> None:
    """Kaldi reflects repeatedly if an utterance is shorter than the padding. Other rows must have no influence."""
    config = dataclasses.replace(CONFIGS["kaldi_reflect"], normalization="none")
    waveform = parity.noise(n_samples)
    batch, lengths = parity.pad_batch([waveform, parity.noise(399, seed=1)], SIZE)
    features, mask = FBANK(config, batch, lengths)
    theirs = _kaldi(config, waveform)
    assert int(mask[0].sum()) == len(theirs)
    assert np.abs(features[0, : len(theirs)] - theirs).max() <= 2 * parity.FEATURE_BOUND


# Mathematical properties


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(FRAMINGS), n_samples=st.integers(0, 60000))
def test_frame_count_equals_the_number_of_placed_frames(name: str, n_samples: int) -> None:
    config = CONFIGS[name]
    assert frame_count(config, n_samples) == _count_frames(config, n_samples)


@pytest.mark.parametrize("name", FRAMINGS)
def test_frame_count_of_arrays(name: str) -> None:
    n_samples = np.arange(5000)
    counts = frame_count(CONFIGS[name], jnp.asarray(n_samples))
    np.testing.assert_array_equal(counts, [_count_frames(CONFIGS[name], int(n)) for n in n_samples])


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(FRAMINGS), n_frames=st.integers(1, 3000))
def test_minimum_samples_is_the_inverse(name: str, n_frames: int) -> None:
    config = CONFIGS[name]
    least = minimum_samples(config, n_frames)
    if config.framing == "center_reflect" and least == config.fft_size // 2 + 1:  # shorter waveforms can't be reflected
        assert frame_count(config, least) >= n_frames
        return
    assert frame_count(config, least) == n_frames
    assert least == 1 or frame_count(config, least - 1) == n_frames - 1


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FRAMINGS),
    length=st.sampled_from([400, 401, 4000]),  # only a few, because every length is another shape
    mates=st.lists(st.integers(1, 4000), min_size=3, max_size=3),
    padding=st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e30, -0.7]),
)
def test_padding_and_other_rows_do_not_change_the_features(
    name: str, length: int, mates: list[int], padding: float
) -> None:
    """Batches of one shape give identical bits. In another shape, XLA may add in another order."""
    config, waveform = CONFIGS[name], parity.noise(length)
    others = [parity.noise(mate, seed=mate) for mate in mates]
    together, mask = FBANK(config, *parity.pad_batch([waveform, *others], 5003, padding))
    elsewhere, _ = FBANK(config, *parity.pad_batch([waveform] * 4, 5003, 0.0))
    np.testing.assert_array_equal(together[0], elsewhere[0])
    alone, _ = FBANK(config, waveform[None], np.array([length], np.int32))
    frames = frame_count(config, length)
    assert alone.shape[1] == seen_count(config, frames)
    assert np.array_equal(mask[0], np.arange(mask.shape[1]) < frames)
    assert not np.asarray(together)[~np.asarray(mask)].any()
    error = np.abs(together[0, :frames] - alone[0, :frames])
    assert parity.in_nepers(config, float(error.max())) <= 1e-4
    assert parity.in_nepers(config, float(np.sqrt(np.mean(error**2)))) <= 1e-5


@pytest.mark.parametrize("name", ["3dspeaker", "speechbrain", "nemo"])
def test_vmap_equals_the_batch(name: str, signals: dict[str, np.ndarray]) -> None:
    config = CONFIGS[name]
    waveforms, lengths = parity.pad_batch(list(signals.values())[:4], SIZE)

    def features_of_one(waveform: jax.Array, length: jax.Array) -> jax.Array:
        return fbank(config, waveform[None], length[None], stored_constants(config))[0][0]

    mapped = jax.jit(jax.vmap(features_of_one))(waveforms, lengths)
    np.testing.assert_allclose(mapped, FBANK(config, waveforms, lengths)[0], rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", FRAMINGS)
def test_gradient_is_finite_and_zero_in_the_padding(name: str) -> None:
    """Silence, a constant and an impulse are at the points where max and log have no derivative."""
    config = CONFIGS[name]
    rows = [np.zeros(3000), np.full(2501, 0.5), parity.impulse(4000), parity.noise(1999), np.zeros(1)]
    waveforms, lengths = parity.pad_batch(rows, 4000)
    weights = np.random.default_rng(0).standard_normal(config.n_mels).astype(np.float32)

    def loss(waveforms: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(fbank(config, waveforms, lengths, stored_constants(config))[0] @ weights))

    gradient = jax.jit(jax.grad(loss))(waveforms)
    assert np.isfinite(gradient).all()
    assert not gradient[np.arange(4000) >= lengths[:, None]].any()
    assert np.abs(gradient[3, :1999]).max() > 0


@pytest.mark.parametrize("name", ["3dspeaker", "speechbrain"])
def test_gradient_equals_finite_differences(name: str) -> None:
    config = CONFIGS[name]
    waveform, direction = parity.noise(4000), parity.noise(4000, seed=1)
    weights = np.random.default_rng(0).standard_normal((frame_count(config, 4000), config.n_mels))

    def loss(waveform: jax.Array) -> jax.Array:
        return jnp.sum(fbank(config, waveform[None], np.array([4000]))[0][0] * weights.astype(np.float32))

    slope = jax.jit(lambda x, v: jax.jvp(loss, (x,), (v,))[1])(waveform, direction)
    gradient = jax.jit(jax.grad(loss))(waveform)
    np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-3)
    step = 1e-6
    wide, along = waveform.astype(np.float64), direction.astype(np.float64)
    ends = [np.sum(oracle.fbank(config, wide + sign * step * along) * weights) for sign in (1, -1)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-3)
