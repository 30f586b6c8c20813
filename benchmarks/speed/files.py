"""Compares `SpeakerEncoder.embed` on files with the bare compiled function on the same padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile

import ecapa_jax
from benchmarks.speed import turns
from benchmarks.speed.engines_jax import variables_of
from benchmarks.speed.model import RATE, Model
from ecapa_jax import functional
from ecapa_jax.bundle.bundle import Bundle, save_bundle
from ecapa_jax.encoder import SpeakerEncoder

SHORTEST, LONGEST = 2.0, 20.0


def measure(folder: Path, width: int, n_files: int, n_turns: int) -> Iterator[dict[str, Any]]:
    """Yields one row of results for each dtype."""
    model = Model(width, folder)
    model.write()
    paths, waveforms = _recordings(folder / "flac", n_files)
    variables = jax.tree.map(np.asarray, variables_of(model, "3dspeaker"))
    bundle = save_bundle(Bundle(config=model.config(), variables=variables), folder / f"bundle-c{width}", force=True)
    for dtype in ("float32", "bfloat16"):
        encoder = ecapa_jax.load(bundle, dtype=dtype)
        folded = jax.device_put(ecapa_jax.fold(encoder.config, variables, dtype))
        yield {"dtype": dtype, "width": width, **_compare(encoder, folded, paths, waveforms, n_turns)}


def _compare(
    encoder: SpeakerEncoder, folded: Any, paths: list[Path], waveforms: list[np.ndarray], n_turns: int
) -> dict[str, Any]:
    """Measures both ways in turn."""
    batches = pad_batches(encoder, waveforms)
    embed = jax.jit(functional.embed_in_groups, static_argnums=(0, 4))

    def bare() -> np.ndarray:
        rows = [embed(encoder.config, folded, *batch, encoder.buckets.group(*batch[0].shape)) for _, *batch in batches]
        found = np.empty((len(paths), encoder.config.ecapa.embedding_dim), np.float32)
        for (indices, *_), row in zip(batches, rows, strict=True):
            found[list(indices)] = np.asarray(row)[: len(indices)]
        return found

    calls: dict[str, Callable[[], np.ndarray]] = {"embed": lambda: encoder.embed(paths), "bare": bare}
    expected = bare()
    gap = np.abs(calls["embed"]() - expected).max() / np.abs(expected).max()  # the first calls compile
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(n_turns):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            times[name].append(turns.time_call(calls[name]))
    audio = sum(len(waveform) for waveform in waveforms)
    return {
        "files": len(paths),
        "audio_seconds": audio / RATE,
        "padding": sum(rows.size for _, rows, _ in batches) / audio - 1,
        "times": times,
        "median": {name: turns.median(every) for name, every in times.items()},
        "share": turns.times_as_fast(times["embed"], times["bare"]),
        "gap": float(gap),
    }


def pad_batches(
    encoder: SpeakerEncoder, waveforms: list[np.ndarray]
) -> list[tuple[tuple[int, ...], np.ndarray, np.ndarray]]:
    """Returns the batches that `embed` makes: indices, [B, S] samples, [B] lengths."""
    batches = []
    for batch, members in encoder.buckets.stream(waveforms):
        rows, lengths = np.zeros((batch.rows, batch.samples), np.float32), np.zeros(batch.rows, np.int32)
        for row, waveform in enumerate(members):
            lengths[row] = len(waveform)
            rows[row, : len(waveform)] = waveform
        batches.append((batch.indices, rows, lengths))
    return batches


def _recordings(folder: Path, n_files: int) -> tuple[list[Path], list[np.ndarray]]:
    """Writes FLAC files of noise with a slow envelope, which compress about as well as speech."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    paths, waveforms = [], []
    for index in range(n_files):
        n_samples = round(RATE * generator.uniform(SHORTEST, LONGEST))
        envelope = 0.05 * (1.05 + np.sin(np.arange(n_samples) / RATE * 2 * np.pi * 3))
        samples = np.round(32767 * envelope * generator.standard_normal(n_samples).clip(-4, 4)).astype(np.int16)
        paths.append(folder / f"{index:04d}.flac")
        soundfile.write(paths[-1], samples, RATE)
        waveforms.append(samples.astype(np.float32) / 32768)
    return paths, waveforms
