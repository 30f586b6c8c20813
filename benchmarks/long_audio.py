"""Measures embedding an hour of audio: peak memory, time per second, and the difference from the one-pass function.

    python benchmarks/long_audio.py [--seconds 3600] [--width 1024] [--data FILE ...] [--clips 120 300] [--turns 5]

The script measures two models: the 3D-Speaker configuration at the width, with random weights (which do not affect the
time), and the packaged model. The recording is a 16-bit WAV at 44.1 kHz, made from the files of `--data` in turn, or
from noise with the spectrum and the pauses of speech. `SpeakerEncoder.embed(path)` decodes, resamples and embeds it.
For comparison, the same method embeds a clip of 10 s from an array; its time is the median of the turns. Peak memory is
that of a separate process that only embeds the recording. Run the script on an idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import soundfile

import ecapa_jax
from ecapa_jax import functional
from ecapa_jax.audio.load import load_audio, open_audio
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.long import passes
from ecapa_jax.presets import PRESETS

RATE, STORED_RATE = 16000, 44100
CLIP_SECONDS = 10.0


def main() -> None:
    """Prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--clips", type=int, nargs="*", default=[120, 300])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peak", metavar="RECORDING", help=argparse.SUPPRESS)
    parser.add_argument("--packaged", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(measure_peak(make_encoder(arguments.packaged, arguments.width), arguments.peak)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.wav"
        write_recording(path, arguments.seconds, arguments.data)
        for packaged in (False, True):
            report(make_encoder(packaged, arguments.width), path, packaged, arguments)


def report(encoder: SpeakerEncoder, path: Path, packaged: bool, arguments: argparse.Namespace) -> None:
    """Prints the rows of one model."""
    name = "packaged model" if packaged else f"3D-Speaker, C = {arguments.width}, random weights"
    command = [sys.executable, __file__, "--peak", str(path), "--width", str(arguments.width)]
    done = subprocess.run([*command, *["--packaged"] * packaged], capture_output=True, text=True, check=True)
    before, peak = json.loads(done.stdout)
    clip = measure_clip(encoder, arguments.turns)
    encoder._embed_long([noise(int(2 * passes.CHUNK_SECONDS), 1)])  # compiles
    start = time.perf_counter()
    encoder.embed(path) if arguments.seconds > 160 else encoder._embed_long(read_blocks(path))
    took = time.perf_counter() - start
    ratio = took / arguments.seconds / (clip / CLIP_SECONDS)
    print(f"\n## {name}; jax {jax.__version__}, {jax.default_backend()}\n")
    print(
        f"- {arguments.seconds} s of audio: {took:.1f} s, {arguments.seconds / took:.0f} times as fast as it is spoken"
    )
    print(f"- a clip of 10 s: {1000 * clip:.1f} ms; cost a second of the recording beside it: **{ratio:.2f}**")
    print(f"- peak memory **{peak:.0f} MB**, of which {before:.0f} MB before the recording is opened")
    print("\n| against | seconds | largest difference, of the embedding's largest | 1 - cosine |\n|---|--:|--:|--:|")
    for seconds in arguments.clips:
        waveform = np.concatenate(list(read_start(path, seconds)))
        found, expected = encoder._embed_long([waveform])[0], embed_in_one_pass(encoder, waveform)
        print(difference_row(f"one pass over {seconds} s", len(waveform) / RATE, found, expected), flush=True)
    found, expected = (embed_in_chunks(encoder, path, frames) for frames in (3000, 1000))
    print(difference_row("chunks of 30 s against chunks of 10 s", arguments.seconds, found, expected), flush=True)


def make_encoder(packaged: bool, width: int) -> SpeakerEncoder:
    """Returns the packaged model, or a model with random weights."""
    if packaged:
        return ecapa_jax.load()
    base = PRESETS["3dspeaker"]
    network = dataclasses.replace(base.ecapa, channels=(width,) * 4, mfa_channels=3 * width)
    config = dataclasses.replace(base, ecapa=network)
    return SpeakerEncoder(config, functional.init(config, jax.random.key(0)))


def measure_peak(encoder: SpeakerEncoder, path: str) -> tuple[float, float]:
    """Returns the peak memory of this process in MB, before and after it embeds the recording."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = peak()
    if soundfile.info(path).duration > 160:
        encoder.embed(path)
    else:
        encoder._embed_long(read_blocks(Path(path)))
    return before, peak()


def measure_clip(encoder: SpeakerEncoder, turns: int) -> float:
    """Returns the median time of a clip of 10 s."""
    clip, times = noise(int(CLIP_SECONDS), 0), []
    encoder.embed(clip)
    for _ in range(turns):
        start = time.perf_counter()
        encoder.embed(clip)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def embed_in_one_pass(encoder: SpeakerEncoder, waveform: np.ndarray) -> np.ndarray:
    """Embeds the whole waveform at once."""
    lengths = np.array([len(waveform)], np.int32)
    embed = jax.jit(functional.embed, static_argnums=0)
    return np.asarray(embed(encoder.config, encoder.variables, waveform[None], lengths))[0]


def embed_in_chunks(encoder: SpeakerEncoder, path: Path, chunk_frames: int) -> np.ndarray:
    """Embeds a recording in chunks of `chunk_frames` frames."""
    return passes.embed(encoder.config, encoder.variables, read_blocks(path), chunk_frames=chunk_frames)


def difference_row(what: str, seconds: float, found: np.ndarray, expected: np.ndarray) -> str:
    """Returns a row of the table of differences."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    error = np.abs(a - b).max() / np.abs(b).max()
    return f"| {what} | {seconds:.0f} | {error:.1e} | {1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b):.1e} |"


def read_blocks(path: Path) -> Iterator[np.ndarray]:
    """Reads the recording as the encoder does."""
    options = {"sample_rate": None, "target_rate": RATE, "channel": "first"}
    yield from open_audio(path, **options, longest=1.0)


def read_start(path: Path, seconds: int) -> Iterator[np.ndarray]:
    """Reads the first seconds of the recording, or all of it."""
    left = seconds * RATE
    for block in read_blocks(path):
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return


def write_recording(path: Path, seconds: int, data: list[Path]) -> None:
    """Writes the recording minute by minute, so that it is never in memory as a whole."""
    parts = [load_audio(file, sample_rate=None, target_rate=STORED_RATE, channel="first") for file in data]
    with soundfile.SoundFile(path, "w", STORED_RATE, 1, "PCM_16") as file:
        left, index = seconds * STORED_RATE, 0
        while left > 0:
            part = parts[index % len(parts)] if parts else noise(60, index, STORED_RATE)
            file.write(part[:left])
            left, index = left - len(part), index + 1


def noise(seconds: int, seed: int, rate: int = RATE) -> np.ndarray:
    """Returns noise with the spectrum of speech, in syllables with pauses, with a drifting level."""
    generator = np.random.default_rng(seed)
    n_samples = seconds * rate
    spectrum = np.fft.rfft(generator.standard_normal(n_samples))
    spectrum /= 1 + (np.fft.rfftfreq(n_samples, 1 / rate) / 500) ** 1.5
    time_axis = np.arange(n_samples) / rate
    syllables = np.clip(np.sin(2 * np.pi * 4 * time_axis + 3 * np.sin(2 * np.pi * 0.3 * time_axis)) + 0.5, 0, None)
    samples = np.fft.irfft(spectrum, n_samples) * syllables * (1 + 0.5 * np.sin(2 * np.pi * time_axis / 47 + seed))
    return (0.3 * samples / np.abs(samples).max()).astype(np.float32)


if __name__ == "__main__":
    main()
