"""Scores two recordings without ecapa-jax: python score_onnx.py model.onnx a.wav b.wav."""

import sys

import numpy as np
import onnxruntime
import soundfile

model, *recordings = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
signals = [soundfile.read(recording, dtype="float32", always_2d=True) for recording in recordings]
assert all(rate == int(about["sample_rate"]) for _, rate in signals), f"resample to {about['sample_rate']} Hz"
mono = [samples.mean(1) if about["channel"] == "their mean" else samples[:, 0] for samples, _ in signals]
lengths = np.array([len(signal) for signal in mono], np.int64)
waveforms = np.stack([np.pad(signal, (0, lengths.max() - len(signal))) for signal in mono])
a, b = session.run(None, {"waveforms": waveforms, "lengths": lengths})[0]
print(f"cosine {a @ b / np.linalg.norm(a) / np.linalg.norm(b):.4f}, the model's threshold is {about['threshold']}")
