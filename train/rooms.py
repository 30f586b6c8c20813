"""Room impulse responses for the augmentation: from a folder, or of simulated rooms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int

from ecapa_jax.audio.load import load_audio
from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.train.config import AugmentConfig

SECONDS = 0.5
"""Length of a response; what comes later is 30 to 60 dB down in a living room."""

SOUND = 343.0  # m/s
_SUFFIXES = {".wav", ".flac"}


def room_bank(config: AugmentConfig, sample_rate: int, seed: int) -> dict[str, Float32[np.ndarray, "rooms response"]]:
    """`{"rooms": [n, L]}`, each response from its direct sound on and of unit energy; empty if no room is asked for.

    Raises:
      ConfigError: the folder of `config.rirs` holds no WAV or FLAC that can be read.
    """
    if not config.probability or not (config.reverberation or config.reverberation_noise):
        return {}
    draw = np.random.Generator(np.random.Philox(key=[seed, 3]))
    length = round(SECONDS * sample_rate)
    rooms = _from_folder(config, sample_rate, draw) if config.rirs else simulated_rooms(config.rooms, sample_rate, draw)
    return {"rooms": np.stack([_aligned(room, length) for room in rooms]).astype(np.float32)}


def _from_folder(config: AugmentConfig, sample_rate: int, draw: np.random.Generator) -> list[Float32[np.ndarray, " n"]]:
    paths = sorted(path for path in Path(config.rirs).rglob("*") if path.suffix.lower() in _SUFFIXES)
    chosen = [paths[index] for index in draw.permutation(len(paths))[: config.rooms]]
    rooms, problem = [], "none is there"
    for path in chosen:
        try:
            room = load_audio(path, sample_rate=None, target_rate=sample_rate, channel="first")
        except AudioError as error:
            problem = str(error)
            continue
        if np.abs(room).max() > 0:
            rooms.append(room)
    if not rooms:
        raise ConfigError(f"augment.rirs: {config.rirs} holds no impulse response, WAV or FLAC, to use ({problem})")
    return rooms


def _aligned(room: Float[np.ndarray, " n"], length: int) -> Float[np.ndarray, " response"]:
    """From the direct sound on, so that reverberation does not move the speech; of unit energy."""
    direct = int(np.argmax(np.abs(room)))
    cut = room[direct : direct + length]
    return np.pad(cut, (0, length - len(cut))) / np.sqrt(np.sum(np.square(cut, dtype=np.float64)))


def simulated_rooms(number: int, sample_rate: int, draw: np.random.Generator) -> list[Float[np.ndarray, " response"]]:
    """Impulse responses of box-shaped rooms, from a small office to a hall, by the image-source method.

    Reference: Allen and Berkley 1979, with one frequency-independent reflection coefficient for all walls, set by
      Sabine's formula from a reverberation time of 0.1 to 0.8 s.
    """
    return [_simulated_room(sample_rate, draw) for _ in range(number)]


def _simulated_room(sample_rate: int, draw: np.random.Generator) -> Float[np.ndarray, " response"]:
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
    # Walls scatter: images of one distance would ring like a comb without a sign of their own.
    sign = np.where(draw.random(len(delay)) < 0.5, -1.0, 1.0) ** (bounces > 1)
    strength = sign * reflection**bounces / distance
    return np.bincount(np.rint(delay[near]).astype(int), strength[near], minlength=length)


def _images(
    size: Float[np.ndarray, 3], source: Float[np.ndarray, 3], reach: float
) -> tuple[Float[np.ndarray, "images 3"], Int[np.ndarray, " images"]]:
    """Mirror images of the source within reach, and how many walls each sound has met."""
    axes = []
    for side, place in zip(size, source, strict=True):
        order = np.arange(-min(int(reach / side) + 1, 12), min(int(reach / side) + 1, 12) + 1)
        axes.append((np.where(order % 2 == 0, order * side + place, (order + 1) * side - place), np.abs(order)))
    grids = np.meshgrid(*(axis[0] for axis in axes), indexing="ij")
    counts = np.meshgrid(*(axis[1] for axis in axes), indexing="ij")
    return np.stack([grid.ravel() for grid in grids], axis=1), np.sum([count.ravel() for count in counts], axis=0)
