"""Parts of recordings as 16-bit samples, for training; and the way back into FLAC.

Reads only what is asked for where the file allows it. Like `audio.load`, it imports its libraries on first use.
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
    """Samples `start` to `start + n_samples` of a recording's first channel, at `rate`, fewer where it ends before.

    A WAV or FLAC at this rate is read from `start` on; anything else is decoded and resampled whole.

    Raises:
      AudioError: it can't be read or decoded.
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
    """A waveform in [-1, 1] as 16-bit samples, clipped at full scale."""
    return np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16)


def change_speed(samples: Int16[np.ndarray, " samples"], factor: float) -> Int16[np.ndarray, " changed"]:
    """The samples played `factor` times as fast: 1 / factor as many, pitch and tempo both changed.

    Reference: sox's `speed` effect, as in Kaldi's and 3D-Speaker's speed perturbation.
    """
    if factor == 1.0:
        return samples
    import soxr

    return soxr.resample(samples, 1000 * factor, 1000, quality="HQ")


def to_flac(samples: Int16[np.ndarray, " samples"], rate: int) -> bytes:
    """A FLAC file of one channel of 16 bits."""
    import soundfile

    with io.BytesIO() as stream:
        soundfile.write(stream, samples, rate, format="FLAC", subtype="PCM_16")
        return stream.getvalue()
