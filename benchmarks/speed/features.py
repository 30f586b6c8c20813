"""Measures the front end alone against kaldi-native-fbank and torchaudio, one recording at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.speed import turns
from benchmarks.speed.engines import Call
from benchmarks.speed.model import noise
from ecapa_jax.presets import PRESETS

TITLES = {
    "ours": "ecapa-jax",
    "native": "kaldi-native-fbank",
    "torchaudio": "torchaudio.compliance.kaldi",
}


def measure(lengths: tuple[float, ...], seconds: float) -> list[dict[str, Any]]:
    """Returns one row of results for each length."""
    calls = {"ours": make_ours(), "native": make_native(), "torchaudio": _make_torchaudio()}
    rows = []
    for length in lengths:
        waveforms = noise(1, length)
        expected = calls["ours"](waveforms)
        gaps = {name: float(np.abs(call(waveforms) - expected).max()) for name, call in calls.items()}
        times = turns.time_in_turns({name: partial(call, waveforms) for name, call in calls.items()}, seconds)
        engines = {
            name: {
                "times": times[name],
                "median": turns.median(times[name]),
                "than_ours": turns.times_as_fast(times[name], times["ours"]),
                "gap": gaps[name],
            }
            for name in calls
        }
        rows.append({"seconds": length, "engines": engines})
    return rows


def make_ours() -> Call:
    """Returns this library's jitted front end from [1, S] to [1, T, 80], mean subtracted."""
    import jax

    from ecapa_jax.features.fbank import fbank

    config = PRESETS["3dspeaker"].fbank
    run = jax.jit(fbank, static_argnums=0)

    def call(waveforms: np.ndarray) -> np.ndarray:
        return np.asarray(run(config, waveforms, np.full(len(waveforms), waveforms.shape[1], np.int32))[0])

    return call


def make_native() -> Call:
    """Returns kaldi-native-fbank, which supports only one thread."""
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 80

    def call(waveforms: np.ndarray) -> np.ndarray:
        rows = []
        for waveform in waveforms:
            fbank = knf.OnlineFbank(options)
            fbank.accept_waveform(16000, waveform)
            fbank.input_finished()
            row = np.stack([fbank.get_frame(index) for index in range(fbank.num_frames_ready)])
            rows.append(row - row.mean(0, keepdims=True))
        return np.stack(rows)

    return call


def _make_torchaudio() -> Call:
    import torch

    from benchmarks.speed.engines_torch import kaldi_features

    def call(waveforms: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return kaldi_features(waveforms)

    return call
