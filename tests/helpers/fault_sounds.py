"""Seeded recordings of several kinds, like those of recorders, programs and users, each with its expected result."""

from __future__ import annotations

import dataclasses
import io
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile

RATE = 16000


@dataclasses.dataclass(frozen=True)
class Sound:
    """A recording and the expected result of loading it.

    Attributes:
      kind: the kind of recording.
      source: the bytes of a file, or an array.
      expected: the samples, or words of the error message.
      options: options for `load_audio`.
      warns: words of the expected warning.
    """

    kind: str
    source: Any
    expected: np.ndarray | str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    warns: str = ""


def voice(draw: random.Random, seconds: float | None = None) -> np.ndarray:
    """Returns 16-bit samples of a tone with a changing level and some noise."""
    n = int(RATE * (seconds or draw.uniform(0.2, 0.6)))
    rng = np.random.default_rng(draw.randrange(1 << 30))
    wave = np.sin(np.arange(n) * draw.uniform(0.05, 0.5)) * np.linspace(0.2, 0.8, n) + rng.normal(size=n) / 50
    return (wave * draw.randint(3000, 25000)).astype(np.int16)


def as_file(samples: np.ndarray, kind: str = "WAV", rate: int = RATE) -> bytes:
    """Encodes samples as a file with 16-bit samples, or as Vorbis."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype="VORBIS" if kind == "OGG" else "PCM_16")
    return file.getvalue()


def floats(samples: np.ndarray) -> np.ndarray:
    """Converts 16-bit samples to floats in [-1, 1)."""
    return (samples / 32768).astype(np.float32)


def unfinished_header(draw: random.Random) -> Sound:
    """Makes a WAV file whose recorder was stopped before it wrote the sizes."""
    samples = voice(draw)
    content = bytearray(as_file(samples))
    at = content.index(b"data") + 4
    riff, data = draw.choice([(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (36, 0), (0, 0xFFFFFFFF)])
    content[4:8], content[at : at + 4] = struct.pack("<I", riff), struct.pack("<I", data)
    return Sound("unfinished header", bytes(content), floats(samples), warns="" if data else "never finished")


def several_streams(draw: random.Random) -> Sound:
    """Makes a file of several recordings that `cat` has joined."""
    kind = draw.choice(["WAV", "FLAC"])
    parts = [voice(draw) for _ in range(draw.randint(2, 4))]
    joined = b"".join(as_file(part, kind) for part in parts)
    if draw.random() < 0.25:
        return Sound("several streams", joined + as_file(parts[0], kind, 8000), "16000 and 8000 Hz")
    return Sound("several streams", joined, floats(np.concatenate(parts)))


def cut_file(draw: random.Random) -> Sound:
    """Makes a truncated file."""
    content = as_file(voice(draw, 1.0), draw.choice(["WAV", "FLAC"]))
    return Sound("file cut short", content[: int(len(content) * draw.uniform(0.2, 0.9))], "truncated")


def wrong_amplitude(draw: random.Random) -> Sound:
    """Makes samples whose dtype does not fit their amplitude."""
    samples = voice(draw)
    form = draw.randrange(5)
    if form == 0:
        return Sound("amplitude", samples.astype(np.int32), "unscaled")
    if form == 1:
        return Sound("amplitude", samples.astype(draw.choice([np.float32, np.float64])), "unscaled")
    if form == 2:
        return Sound("amplitude", samples.astype(draw.choice([np.int64, np.uint16, np.uint32])), "")
    if form == 3:
        return Sound("amplitude", samples.astype(np.int32) << 16, floats(samples))
    return Sound("amplitude", floats(samples).astype(np.float64), floats(samples))


def several_axes(draw: random.Random) -> Sound:
    """Makes arrays with two axes: a recording with channels, or a batch, which must be refused."""
    samples = floats(voice(draw))
    form = draw.randrange(4)
    if form == 0:
        return Sound("axes", samples[None], samples)
    if form == 1:
        return Sound("axes", samples[:, None], samples)
    if form == 2:
        other = floats(voice(draw, len(samples) / RATE))[: len(samples)]
        return Sound("axes", np.stack([samples, other], axis=1), other, {"channel": "right"})
    return Sound("axes", np.stack([samples] * draw.randint(33, 60)), "list(array)")


def not_finite(draw: random.Random) -> Sound:
    """Makes a recording with one sample that is NaN or infinite."""
    samples = floats(voice(draw))
    samples[draw.randrange(len(samples))] = draw.choice([np.nan, np.inf, -np.inf])
    return Sound("not finite", samples, "finite")


def no_sound(draw: random.Random) -> Sound:
    """Makes an input that is not a recording."""
    rng = np.random.default_rng(draw.randrange(1 << 30))
    content = draw.choice([b"", rng.bytes(draw.randint(1, 3000)), b"<html>404</html>" * 9, b"RIFF" + rng.bytes(60)])
    return Sound("no sound", content, "")


KINDS: dict[str, Callable[[random.Random], Sound]] = {
    function.__name__: function
    for function in (
        unfinished_header,
        several_streams,
        cut_file,
        wrong_amplitude,
        several_axes,
        not_finite,
        no_sound,
    )
}


def sounds(kind: str, n: int, seed: int = 17) -> list[Sound]:
    """Returns the first `n` recordings of a kind, which depend only on the seed."""
    draw = random.Random(f"{kind} {seed}")
    return [KINDS[kind](draw) for _ in range(n)]
