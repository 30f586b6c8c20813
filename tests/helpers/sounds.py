"""Synthetic sounds, encoded files of them, and helpers that load them."""

import inspect
import io

import numpy as np
import pytest
import soundfile

from ecapa_jax.audio.load import load_audio
from ecapa_jax.errors import AudioError

RATE = 16000


def sound(seconds=1.0, rate=RATE, channels=1):
    """Returns a chord with a little noise, at most 0.5, as float32 [samples] or [samples, channels]."""
    time = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(0)
    parts = [
        0.2 * np.sin(2 * np.pi * 220 * (c + 1) * time) + 0.2 * np.sin(2 * np.pi * 331 * time) for c in range(channels)
    ]
    x = np.stack(parts, axis=1) + 0.01 * rng.standard_normal((len(time), channels))
    return np.squeeze(x.astype(np.float32)) if channels == 1 else x.astype(np.float32)


def encode(x, kind="WAV", subtype=None, rate=RATE, **options):
    file = io.BytesIO()
    soundfile.write(file, x, rate, format=kind, subtype=subtype, **options)
    return file.getvalue()


def load(source, sample_rate=None, target_rate=RATE, channel="first", **options):
    return load_audio(source, sample_rate=sample_rate, target_rate=target_rate, channel=channel, **options)


def assert_refused(source, match, **options):
    with pytest.raises(AudioError, match=match) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_refused_without_type_checks(source, match):
    """Checks that `load_audio` refuses a source, without the run-time type checks of the tests."""
    with pytest.raises(AudioError, match=match):
        inspect.unwrap(load_audio)(source, sample_rate=None, target_rate=RATE, channel="first")


COMPLETE = {
    "wav": encode(sound()),
    "wav24": encode(sound(channels=2), subtype="PCM_24"),
    "wav_float": encode(sound(), subtype="FLOAT"),
    "wavex": encode(sound(), "WAVEX"),
    "rf64": encode(sound(), "RF64"),
    "aiff": encode(sound(), "AIFF"),
    "au": encode(sound(), "AU"),
    "flac": encode(sound(), "FLAC"),
    "ogg": encode(sound(3), "OGG"),
    "opus": encode(sound(3), "OGG", "OPUS"),
    "mp3": encode(sound(), "MP3"),
    "mp3_vbr": encode(sound(), "MP3", bitrate_mode="VARIABLE", compression_level=0.2),
}
