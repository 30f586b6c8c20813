"""Files in formats that libsndfile can't read, written by PyAV."""

from __future__ import annotations

import io

import numpy as np
import pytest

RATE = 16000


def tone(seconds: float = 2.0, channels: int = 1) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return np.stack([0.3 * np.sin(2 * np.pi * (440 + 220 * k) * time) for k in range(channels)]).astype(np.float32)


def encoded(samples: np.ndarray, container: str, codec: str) -> bytes:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'ecapa-jax[av]'")
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as output:
        track = output.add_stream(codec, rate=RATE, layout="mono" if len(samples) == 1 else "stereo")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=track.layout.name)
        frame.sample_rate = RATE
        for packet in [*track.encode(frame), *track.encode(None)]:
            output.mux(packet)
    return stream.getvalue()
