"""Conversations of synthetic voices, and an encoder that distinguishes them without a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import numpy as np

RATE = 16000


def voice(seconds: float, pitch: float, seed: int = 0) -> np.ndarray:
    """Generates a buzz with pitch, syllables and three formants, which both speech detectors mostly accept."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    bend = pitch * (1 + 0.04 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(bend) / RATE
    formants = rng.permutation([(500, 1500, 2500), (300, 2200, 3000), (700, 1200, 2600)])
    vowels = np.minimum((time * 4).astype(int) % 3, 2)
    wave = np.zeros_like(time)
    for harmonic in range(1, 24):
        frequency = harmonic * pitch
        gain = np.array([sum(np.exp(-(((frequency - f) / 150) ** 2)) for f in group) + 0.02 for group in formants])
        wave += gain[vowels] * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 4 * time) + 0.6, 0, 1)
    return (0.2 * wave * syllables / np.abs(wave).max() + 0.001 * rng.standard_normal(len(time))).astype(np.float32)


class PitchEncoder:
    """Replaces a `SpeakerEncoder`: its embedding depends only on the pitch of a window, from 100 to 200 Hz."""

    sample_rate, minimum_samples = RATE, 400
    scorer = SimpleNamespace(embedding_mean=None)
    config = SimpleNamespace(fbank=SimpleNamespace(channel="first"))

    def embed(self, waveform: np.ndarray) -> np.ndarray:
        return self._row(waveform)[None]

    def embed_stream(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        for index, waveform in enumerate(waveforms):
            assert len(waveform) >= self.minimum_samples
            yield (index,), self._row(waveform)[None]

    def _row(self, waveform: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(waveform * np.hanning(len(waveform)), 4 * RATE)
        power = np.abs(spectrum) ** 2
        lags = slice(RATE // 200, RATE // 100 + 1)  # 100 to 200 Hz, so that no lag is twice another
        lag = RATE // 200 + int(np.fft.irfft(power)[lags].argmax())
        angle = 2.2 * (RATE / lag - 100) / 100
        return np.array([np.cos(angle), np.sin(angle), 0.05], np.float32)
