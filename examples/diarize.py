"""Finds out who speaks when in a conversation made from the demo's recordings: python examples/diarize.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import soundfile

import ecapa_jax
from ecapa_jax.diarization.formats import as_text

RATE = 16000
AUDIO = Path(__file__).parent / "audio"
ORDER = ("slt_1", "awb_1", "slt_2", "awb_2")


def conversation() -> np.ndarray:
    """Returns speech of two synthetic speakers, a woman and a Scottish man, who alternate with pauses."""
    pause = np.zeros(RATE // 2, np.float32)
    parts = [soundfile.read(AUDIO / f"{name}.flac", dtype="float32")[0] for name in ORDER]
    return np.concatenate([piece for part in parts for piece in (pause, part)])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conversation.wav"
        soundfile.write(path, conversation(), RATE)
        result = ecapa_jax.diarize(ecapa_jax.load(), str(path))
    for turn in result.turns:
        print(f"{turn.start:7.2f} {turn.end:7.2f}  {turn.speaker}")
    print("\n" + as_text(result, "conversation", "rttm"), end="")


if __name__ == "__main__":
    main()
