"""Windows and mel filter banks, computed by NumPy in float64 when a function is traced."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

from ecapa_jax.config import FbankConfig


@functools.cache
def window(config: FbankConfig) -> Float[np.ndarray, " frame_length"]:
    """Returns the analysis window."""
    n = config.frame_length
    phase = 2 * np.pi * np.arange(n) / (n if config.window_periodic else n - 1)
    cosine = {"hann": 0.5 - 0.5 * np.cos(phase), "hamming": 0.54 - 0.46 * np.cos(phase)}
    return cosine["hann"] ** 0.85 if config.window == "povey" else cosine[config.window]


def hz_to_mel(config: FbankConfig, hz: np.ndarray) -> np.ndarray:
    """Converts frequencies from Hz to the mel scale of the config."""
    if config.mel_scale == "kaldi":
        return 1127.0 * np.log1p(hz / 700.0)
    if config.mel_scale == "htk":
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    return np.where(hz < 1000.0, hz * 3 / 200, 15.0 + 27.0 * np.log(np.maximum(hz, 1000.0) / 1000.0) / np.log(6.4))


def mel_to_hz(config: FbankConfig, mel: np.ndarray) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    if config.mel_scale == "kaldi":
        return 700.0 * np.expm1(mel / 1127.0)
    if config.mel_scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, mel * 200 / 3, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))


@functools.cache
def mel_matrix(config: FbankConfig) -> Float[np.ndarray, "bins mels"]:
    """Returns the weight of each FFT bin in each mel band.

    Reference: `torchaudio.compliance.kaldi.get_mel_banks` (shape `mel`), `torchaudio.functional.melscale_fbanks`
    (`hz`), `speechbrain.processing.features.Filterbank` (`hz_symmetric`), `librosa.filters.mel` (`hz_area`).
    """
    bins = np.linspace(0.0, config.sample_rate / 2, config.fft_size // 2 + 1)
    low, high = hz_to_mel(config, np.array([config.f_min, config.f_max]))
    edges = np.linspace(low, high, config.n_mels + 2)
    if config.mel_shape == "mel":
        bins = hz_to_mel(config, bins)
    else:
        edges = mel_to_hz(config, edges)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rise = (bins[:, None] - left) / (centre - left)
    if config.mel_shape == "hz_symmetric":
        fall = 1.0 - (bins[:, None] - centre) / (centre - left)
    else:
        fall = (right - bins[:, None]) / (right - centre)
    triangles = np.maximum(0.0, np.minimum(rise, fall))
    return triangles * (2.0 / (right - left)) if config.mel_shape == "hz_area" else triangles


def stored_constants(config: FbankConfig) -> dict[str, Float[np.ndarray, ...]]:
    """Computes the `constants` of the variables of a model: mel matrix and window, if the model stores them."""
    if config.mel_source == "computed":
        return {}
    return {
        "mel_matrix": mel_matrix(config).astype(np.float32),
        "window": window(config).astype(np.float32),
    }
