"""Reads parts of recordings as 16-bit samples for training, and writes samples as FLAC.

If the format of a file allows it, only the part is decoded. Libraries are imported on first use, as in `audio.load`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int16

from ecapa_jax.audio.load import load_audio, name_of
from ecapa_jax.errors import AudioError

_SEEKABLE = {"WAV", "FLAC"}


def read_segment(source: str | Path | bytes, start: int, n_samples: int, *, rate: int) -> Int16[np.ndarray, " samples"]:
    """Reads `n_samples` samples of the first channel at `rate`, from sample `start` on; fewer if the recording ends.

    A WAV or FLAC file at this rate is read from `start` on; other recordings are decoded and resampled as a whole.

    Raises:
      AudioError: the recording can't be read or decoded.
    """
    import soundfile

    name = name_of(source)
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as sound:
            if sound.samplerate == rate and sound.format in _SEEKABLE:
                sound.seek(min(start, sound.frames))
                return np.ascontiguousarray(sound.read(n_samples, dtype="int16", always_2d=True)[:, 0])
    except (soundfile.LibsndfileError, OSError) as error:
        if isinstance(source, bytes) or os.path.exists(source):
            raise AudioError(f"{name}: can't be decoded ({error}); get it again or convert it to WAV") from error
    whole = load_audio(source, sample_rate=None, target_rate=rate, channel="first")
    return to_int16(whole[start : start + n_samples])


def to_int16(waveform: Float32[np.ndarray, " samples"]) -> Int16[np.ndarray, " samples"]:
    """Converts a waveform in [-1, 1] to 16-bit samples, clipped at full scale."""
    return np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16)


def change_speed(samples: Int16[np.ndarray, " samples"], factor: float) -> Int16[np.ndarray, " changed"]:
    """Makes samples `factor` times as fast, which changes pitch and tempo and divides their number by `factor`.

    Reference: the effect `speed` of sox, as in the speed perturbation of Kaldi and 3D-Speaker.
    """
    if factor == 1.0:
        return samples
    import soxr

    return soxr.resample(samples, 1000 * factor, 1000, quality="HQ")


def to_flac(samples: Int16[np.ndarray, " samples"], rate: int) -> bytes:
    """Encodes samples as a FLAC file with one channel of 16 bits."""
    import soundfile

    with io.BytesIO() as stream:
        soundfile.write(stream, samples, rate, format="FLAC", subtype="PCM_16")
        return stream.getvalue()
