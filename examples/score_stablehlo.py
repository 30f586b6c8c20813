"""Scores two recordings without ecapa-jax: python score_stablehlo.py EXPORTED a.wav b.wav."""

import json
import sys
from pathlib import Path

import jax.export
import numpy as np
import soundfile

folder, *recordings = sys.argv[1:]
about = json.loads(Path(folder, "metadata.json").read_text())
embed = jax.export.deserialize(bytearray(Path(folder, "embed.jax_export").read_bytes())).call
signals = [soundfile.read(recording, dtype="float32", always_2d=True) for recording in recordings]
assert all(rate == about["sample_rate"] for _, rate in signals), f"resample to {about['sample_rate']} Hz"
mono = [samples.mean(1) if about["channel"] == "their mean" else samples[:, 0] for samples, _ in signals]
a, b = (np.asarray(embed(signal[None], np.array([len(signal)], np.int32)))[0] for signal in mono)
print(f"cosine {a @ b / np.linalg.norm(a) / np.linalg.norm(b):.4f}")
