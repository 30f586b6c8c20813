"""Decides whether somebody speaks in a recording, because a score of recordings without speech means nothing.

For example, the score of two recordings of hum is often high, because the two hums are alike.

The network of `ecapa_jax.vad.network` hardly ever takes noise for speech, but it misses very quiet speech and takes
some melodies for singing. So a quiet recording is amplified first, and if the network is not certain, the spectrum must
change as fast as the spectrum of speech: notes are steady for longer than vowels are. `benchmarks/speech_gate.py`
measures this rule; its constants were chosen on one half of the files there.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32

from ecapa_jax.audio.decoding import Channel
from ecapa_jax.audio.load import AudioSource, LongAudio, load_audio, open_audio
from ecapa_jax.errors import AudioError
from ecapa_jax.vad.network import FRAME, RATE
from ecapa_jax.vad.recordings import LONGEST_IN_NUMPY, iterate_probabilities

ENOUGH = 11
"""Number of frames with speech, 0.35 s, that the network finds in about half a second of speech."""

_HEARD, _CERTAIN = 0.5, 0.95  # probabilities
_ENOUGH_CERTAIN = 16  # frames, 0.51 s
_STEADIEST = 0.88  # median similarity of neighbouring spectra
_PART = 128  # frames, 4 s; two of them are judged at a time
_LEVEL = 0.05  # RMS of the loud frames, -26 dBFS, to which quieter recordings are amplified
_LOUD = 0.95  # quantile of the levels of the frames of a part, which a click does not reach
_BAND = slice(13, 256)  # bins of 15.6 Hz: 200 Hz to 4 kHz


def speech_seconds(
    recording: AudioSource,
    *,
    sample_rate: int | str | None = None,
    channel: Channel = "mean",
    at_most: float = math.inf,
) -> float:
    """Measures for how long somebody speaks in a recording.

    Args:
      recording, sample_rate, channel: as for `speech_segments`.
      at_most: seconds of speech after which the rest of the recording is skipped.

    Returns:
      The duration in seconds of all frames with a speech probability of 0.5 or more.

    Raises:
      AudioError: the recording can't be read.
    """
    longest = LONGEST_IN_NUMPY * FRAME / RATE
    audio = open_audio(recording, sample_rate=sample_rate, target_rate=RATE, channel=channel, longest=longest)
    heard = 0.0
    for probabilities, _ in iterate_probabilities(audio if isinstance(audio, LongAudio) else [audio], _PART):
        heard += int((probabilities >= _HEARD).sum()) * FRAME / RATE
        if heard >= at_most:
            break
    return heard


def holds_speech(waveform: Float32[np.ndarray, " samples"], rate: int) -> bool:
    """Decides whether somebody speaks in a recording, for about half a second or more.

    Args:
      waveform: samples in [-1, 1].
      rate: sample rate in Hz.
    """
    if rate != RATE:
        waveform = load_audio(waveform, sample_rate=rate, target_rate=RATE, channel="first")
    samples = _amplify(waveform)
    before = np.zeros(0, np.float32)
    for index, (after, _) in enumerate(iterate_probabilities([samples], _PART)):
        start = max(index - 1, 0) * _PART * FRAME
        if _speaks(np.concatenate([before, after]), samples[start : (index + 1) * _PART * FRAME]):
            return True
        before = after
    return False


def require_speech(waveform: Float32[np.ndarray, " samples"], rate: int, name: str) -> None:
    """Refuses a recording in which nobody speaks.

    Args:
      waveform, rate: as for `holds_speech`.
      name: name of the recording, for the message.

    Raises:
      AudioError: the recording holds less than about half a second of speech.
    """
    if not holds_speech(waveform, rate):
        raise AudioError(explain_no_speech(name))


def explain_no_speech(name: str) -> str:
    """Returns the message that refuses a recording without speech."""
    return f"{name}: holds less than half a second of speech; give a recording of somebody who speaks"


def _amplify(waveform: Float32[np.ndarray, " samples"]) -> Float32[np.ndarray, " samples"]:
    """Subtracts the mean of a waveform and amplifies it to a level at which the network finds speech."""
    samples = waveform - waveform.mean(dtype=np.float64).astype(np.float32)
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME) if len(samples) >= FRAME else samples[None]
    levels = np.sqrt(np.mean(frames * frames, axis=1))
    last = max(len(levels) - _PART, 0)
    parts = (levels[start : start + _PART] for start in (*range(0, last, _PART), last))
    level = max(float(np.quantile(part, _LOUD)) for part in parts)
    if not 0 < level < _LEVEL:
        return samples
    return np.clip(samples * np.float32(_LEVEL / level), -1, 1)


def _speaks(probabilities: Float32[np.ndarray, " frames"], samples: Float32[np.ndarray, " samples"]) -> bool:
    if (probabilities >= _CERTAIN).sum() >= _ENOUGH_CERTAIN:
        return True
    heard = probabilities >= _HEARD
    return bool(heard.sum() >= ENOUGH) and _steadiness(samples, heard) < _STEADIEST


def _steadiness(samples: Float32[np.ndarray, " samples"], heard: np.ndarray) -> float:
    """Returns the median cosine between the magnitude spectra of neighbouring windows of 64 ms with speech."""
    whole = len(samples) // FRAME
    together = heard[: max(whole - 2, 0)] & heard[1 : max(whole - 1, 1)] & heard[2:whole]
    if not together.any():
        return 0.0
    windows = np.lib.stride_tricks.sliding_window_view(samples[: whole * FRAME], 2 * FRAME)[::FRAME]
    spectra = np.abs(np.fft.rfft(windows * np.hanning(2 * FRAME).astype(np.float32), axis=1))[:, _BAND]
    spectra /= np.maximum(np.linalg.norm(spectra, axis=1, keepdims=True), 1e-9)
    return float(np.median(np.sum(spectra[:-1] * spectra[1:], axis=1)[together]))
