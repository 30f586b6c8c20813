"""Makes silero.npz: outputs of silero-vad's own code, for tests without its wheel.

    python tests/golden/make_silero.py

The script needs the wheel of silero-vad with torch and onnxruntime, and stores the versions.

Contents of silero.npz:
  versions                        JSON of the packages' versions
  NAME/probabilities              of a waveform of helpers.detector.golden_waveforms, by silero_vad.onnx
  NAME/timestamps                 [n, 2] samples, by get_speech_timestamps with its defaults
  SEED/spans                      [n, 2] samples, by get_speech_timestamps_from_probs of random probabilities
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from silero_vad import get_speech_timestamps, load_silero_vad
from silero_vad.utils_vad import get_speech_timestamps_from_probs

from helpers.detector import GOLDEN, golden_waveforms, random_options, random_probabilities

SEEDS = range(60)


def pairs(found: list[dict[str, int]]) -> np.ndarray:
    return np.array([(one["start"], one["end"]) for one in found], np.int64).reshape(-1, 2)


def main() -> None:
    model = load_silero_vad(onnx=True)
    packages = ("silero-vad", "onnxruntime", "torch", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    arrays = {"versions": np.array(json.dumps(versions))}
    for name, samples in golden_waveforms().items():
        model.reset_states()
        waveform = torch.from_numpy(samples)
        arrays[f"{name}/probabilities"] = model.audio_forward(waveform, 16_000)[0].numpy()
        arrays[f"{name}/timestamps"] = pairs(get_speech_timestamps(waveform, model))
    for seed in SEEDS:
        found = get_speech_timestamps_from_probs(random_probabilities(seed).tolist(), **random_options(seed))
        arrays[f"{seed}/spans"] = pairs(found)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
