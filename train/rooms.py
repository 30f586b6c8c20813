"""Room impulse responses for the augmentation, loaded from a folder or simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int

from ecapa_jax.audio.load import load_audio
from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.train.config import AugmentConfig

SECONDS = 0.5
"""Length of a response; in a living room, later reflections are 30 to 60 dB weaker."""

SOUND = 343.0  # m/s
_SUFFIXES = {".wav", ".flac"}


def make_room_bank(
    config: AugmentConfig, sample_rate: int, seed: int
) -> dict[str, Float32[np.ndarray, "rooms response"]]:
    """Returns `{"rooms": [n, L]}`, responses that start at their direct sound and have unit energy; or {} if unused.

    Raises:
      ConfigError: the folder `config.rirs` holds no readable WAV or FLAC file.
    """
    if not config.probability or not (config.reverberation or config.reverberation_noise):
        return {}
    draw = np.random.Generator(np.random.Philox(key=[seed, 3]))
    length = round(SECONDS * sample_rate)
    rooms = _load_rooms(config, sample_rate, draw) if config.rirs else simulate_rooms(config.rooms, sample_rate, draw)
    return {"rooms": np.stack([_align(room, length) for room in rooms]).astype(np.float32)}


def _load_rooms(config: AugmentConfig, sample_rate: int, draw: np.random.Generator) -> list[Float32[np.ndarray, " n"]]:
    paths = sorted(path for path in Path(config.rirs).rglob("*") if path.suffix.lower() in _SUFFIXES)
    chosen = [paths[index] for index in draw.permutation(len(paths))[: config.rooms]]
    rooms, problem = [], "there is no such file"
    for path in chosen:
        try:
            room = load_audio(path, sample_rate=None, target_rate=sample_rate, channel="first")
        except AudioError as error:
            problem = str(error)
            continue
        if np.abs(room).max() > 0:
            rooms.append(room)
    if not rooms:
        raise ConfigError(f"augment.rirs: {config.rirs} holds no usable impulse response in WAV or FLAC ({problem})")
    return rooms


def _align(room: Float[np.ndarray, " n"], length: int) -> Float[np.ndarray, " response"]:
    """Cuts a response at its direct sound, so that it does not move the speech, and scales it to unit energy."""
    direct = int(np.argmax(np.abs(room)))
    cut = room[direct : direct + length]
    return np.pad(cut, (0, length - len(cut))) / np.sqrt(np.sum(np.square(cut, dtype=np.float64)))


def simulate_rooms(number: int, sample_rate: int, draw: np.random.Generator) -> list[Float[np.ndarray, " response"]]:
    """Simulates impulse responses of box-shaped rooms, from a small office to a hall, by the image-source method.

    Reference: Allen and Berkley 1979, with one frequency-independent reflection coefficient for all walls, set by
      Sabine's formula from a reverberation time of 0.1 to 0.8 s.
    """
    return [_simulate_room(sample_rate, draw) for _ in range(number)]


def _simulate_room(sample_rate: int, draw: np.random.Generator) -> Float[np.ndarray, " response"]:
    size = draw.uniform((3.0, 3.0, 2.3), (12.0, 10.0, 4.0))  # m
    source, microphone = (draw.uniform(0.3, size - 0.3) for _ in range(2))
    volume, surface = np.prod(size), 2 * (size[0] * size[1] + size[1] * size[2] + size[0] * size[2])
    absorbed = np.clip(0.161 * volume / (surface * draw.uniform(0.1, 0.8)), 0.02, 0.98)
    reflection = np.sqrt(1 - absorbed)
    length = round(SECONDS * sample_rate)
    positions, bounces = _images(size, source, SECONDS * SOUND)
    distance = np.maximum(np.linalg.norm(positions - microphone, axis=1), 0.1)
    delay = distance / SOUND * sample_rate
    near = delay < length - 1
    # Real walls scatter sound. Random signs imitate this; without them, images at equal distances ring like a comb.
    sign = np.where(draw.random(len(delay)) < 0.5, -1.0, 1.0) ** (bounces > 1)
    strength = sign * reflection**bounces / distance
    return np.bincount(np.rint(delay[near]).astype(int), strength[near], minlength=length)


def _images(
    size: Float[np.ndarray, 3], source: Float[np.ndarray, 3], reach: float
) -> tuple[Float[np.ndarray, "images 3"], Int[np.ndarray, " images"]]:
    """Returns the mirror images of the source within reach, and the number of reflections of each image."""
    axes = []
    for side, place in zip(size, source, strict=True):
        order = np.arange(-min(int(reach / side) + 1, 12), min(int(reach / side) + 1, 12) + 1)
        axes.append((np.where(order % 2 == 0, order * side + place, (order + 1) * side - place), np.abs(order)))
    grids = np.meshgrid(*(axis[0] for axis in axes), indexing="ij")
    counts = np.meshgrid(*(axis[1] for axis in axes), indexing="ij")
    return np.stack([grid.ravel() for grid in grids], axis=1), np.sum([count.ravel() for count in counts], axis=0)
