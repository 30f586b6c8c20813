"""Sounds without a voice, at 16 kHz: what muted microphones, devices and rooms give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RATE = 16_000


def _noise(rng: np.random.Generator, n: int, slope: float) -> np.ndarray:
    """Noise whose spectrum falls with frequency to this power; largest value 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum *= np.maximum(np.fft.rfftfreq(n, 1 / RATE), 20.0) ** slope
    noise = np.fft.irfft(spectrum, n)
    return noise / np.abs(noise).max()


def dither(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(-1, 2, n) / 32768


def hum(rng: np.random.Generator, n: int) -> np.ndarray:
    base, time = rng.choice([50.0, 60.0]), np.arange(n) / RATE
    parts = sum(rng.uniform(0.1, 1) / k * np.sin(2 * np.pi * k * base * time + rng.uniform(0, 6)) for k in range(1, 9))
    return 10 ** rng.uniform(-2.5, -0.7) * parts + 1e-4 * rng.standard_normal(n)


def click(rng: np.random.Generator, n: int) -> np.ndarray:
    samples = np.zeros(n)
    samples[rng.integers(n)] = rng.uniform(0.01, 1)
    return samples


def beeps(rng: np.random.Generator, n: int) -> np.ndarray:
    time = np.arange(n) / RATE
    on = (time % rng.uniform(0.3, 1.0)) < rng.uniform(0.1, 0.2)
    return rng.uniform(0.05, 0.6) * on * np.sin(2 * np.pi * rng.uniform(300, 3000) * time)


def tone(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.01, 0.8) * np.sin(2 * np.pi * rng.uniform(80, 4000) * np.arange(n) / RATE)


def square(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.01, 0.5) * np.sign(np.sin(2 * np.pi * rng.uniform(60, 1500) * np.arange(n) / RATE))


def sweep(rng: np.random.Generator, n: int) -> np.ndarray:
    frequency = np.geomspace(rng.uniform(40, 200), rng.uniform(2000, 7000), n)
    return rng.uniform(0.05, 0.6) * np.sin(2 * np.pi * np.cumsum(frequency) / RATE)


def white(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.001, 0.5) * _noise(rng, n, 0.0)


def pink(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.01, 0.8) * _noise(rng, n, -0.5)


def constant(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.full(n, rng.uniform(-0.5, 0.5))


SOUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    function.__name__: function for function in (dither, hum, click, beeps, tone, square, sweep, white, pink, constant)
}


def nonspeech(kind: str, seed: int, seconds: float = 3.0) -> np.ndarray:
    """A sound of a kind: float32 [samples] in [-1, 1]."""
    samples = SOUNDS[kind](np.random.default_rng(seed), int(seconds * RATE))
    return np.clip(samples, -1, 1).astype(np.float32)
