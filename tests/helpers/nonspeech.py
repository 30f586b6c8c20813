"""Sounds without a voice at 16 kHz, such as those of muted microphones, devices and rooms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RATE = 16_000


def _noise(rng: np.random.Generator, n: int, slope: float) -> np.ndarray:
    """Returns noise whose spectrum falls with this power of the frequency; its largest value is 1."""
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


def clicks(rng: np.random.Generator, n: int) -> np.ndarray:
    samples = 10 ** rng.uniform(-4.5, -3) * rng.standard_normal(n)
    for _ in range(rng.integers(2, 30)):
        start, size = rng.integers(n - 400), rng.integers(1, 400)
        burst = rng.standard_normal(size) * np.exp(-np.arange(size) / rng.uniform(5, 100))
        samples[start : start + size] += 10 ** rng.uniform(-1.5, 0) * burst
    return samples


def pulses(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.01, 0.6) * ((rng.uniform(60, 400) * np.arange(n) / RATE) % 1 < 0.05)


def sawtooth(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.01, 0.6) * (2 * ((rng.uniform(50, 1000) * np.arange(n) / RATE) % 1) - 1)


def brown(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.01, 0.8) * _noise(rng, n, -1.0)


def gated_noise(rng: np.random.Generator, n: int) -> np.ndarray:
    on = (np.arange(n) / RATE) % rng.uniform(0.3, 1.0) < rng.uniform(0.05, 0.5)
    return rng.uniform(0.05, 0.7) * on * _noise(rng, n, -rng.uniform(0, 1))


def breath(rng: np.random.Generator, n: int) -> np.ndarray:
    frequency = np.fft.rfftfreq(n, 1 / RATE)
    shape = np.exp(-(((frequency - rng.uniform(600, 2500)) / rng.uniform(300, 1200)) ** 2))
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * shape, n)
    rhythm = np.clip(np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * np.arange(n) / RATE), 0, 1) ** 2
    return rng.uniform(0.02, 0.3) * noise / np.abs(noise).max() * rhythm


def keypad(rng: np.random.Generator, n: int) -> np.ndarray:
    """Returns the tones of a telephone keypad."""
    samples, time, start = np.zeros(n), np.arange(n) / RATE, 0
    while start < n:
        size = min(int(rng.uniform(0.06, 0.3) * RATE), n - start)
        tones = rng.choice([697, 770, 852, 941]), rng.choice([1209, 1336, 1477, 1633])
        samples[start : start + size] = sum(np.sin(2 * np.pi * tone * time[:size]) for tone in tones)
        start += size + int(rng.uniform(0.04, 0.4) * RATE)
    return rng.uniform(0.02, 0.35) * samples


def siren(rng: np.random.Generator, n: int) -> np.ndarray:
    swing = np.sin(2 * np.pi * rng.uniform(0.2, 3) * np.arange(n) / RATE)
    frequency = rng.uniform(500, 900) + rng.uniform(100, 400) * swing
    return rng.uniform(0.05, 0.7) * np.sin(2 * np.pi * np.cumsum(frequency) / RATE)


def engine(rng: np.random.Generator, n: int) -> np.ndarray:
    frequency = rng.uniform(25, 120) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.1, 1) * np.arange(n) / RATE))
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    parts = sum(rng.uniform(0.2, 1) / k * np.sin(k * phase) for k in range(1, 30))
    return rng.uniform(0.05, 0.6) * (parts / 3 + 0.1 * _noise(rng, n, -0.5))


def _notes(rng: np.random.Generator, n: int, seconds: float, chord: tuple[float, ...], partials: int) -> np.ndarray:
    """Returns successive notes of a minor scale, each with a chord above it."""
    samples, steps = np.zeros(n), np.array([0, 2, 3, 5, 7, 8, 10, 12, 14, 15])
    size, key, steep = int(seconds * RATE), rng.uniform(110, 260), rng.uniform(0.8, 2)
    time = np.arange(size) / RATE
    envelope = np.clip(np.minimum(time * 40, (time[-1] - time) * 40), 0, 1) * np.exp(-rng.uniform(0, 4) * time)
    for start in range(0, n, size):
        base = key * 2 ** (rng.choice(steps) / 12)
        sound = sum(
            np.sin(2 * np.pi * h * base * interval * time) / h**steep for interval in chord for h in range(1, partials)
        )
        samples[start : start + size] += (envelope * sound)[: n - start]
    return rng.uniform(0.1, 0.8) * samples / np.abs(samples).max()


def melody(rng: np.random.Generator, n: int) -> np.ndarray:
    return _notes(rng, n, rng.uniform(0.12, 0.6), (1.0,), 9)


def chords(rng: np.random.Generator, n: int) -> np.ndarray:
    return _notes(rng, n, rng.uniform(0.2, 1.0), (1.0, 1.189, 1.498, 2.0), 6)


SOUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    function.__name__: function
    for function in (
        *(dither, hum, click, beeps, tone, square, sweep, white, pink, constant),
        *(clicks, pulses, sawtooth, brown, gated_noise, breath, keypad, siren, engine, melody, chords),
    )
}


def nonspeech(kind: str, seed: int, seconds: float = 3.0) -> np.ndarray:
    """Returns a sound of a kind as float32 [samples] in [-1, 1]."""
    samples = SOUNDS[kind](np.random.default_rng(seed), int(seconds * RATE))
    return np.clip(samples, -1, 1).astype(np.float32)
