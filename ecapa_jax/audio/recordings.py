"""Reads a recording for a model: takes its channel at its sample rate, and checks the length and the signal."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32

from ecapa_jax.audio.arrays import is_dataset_row
from ecapa_jax.audio.decoding import Channel
from ecapa_jax.audio.load import AudioSource, LongAudio, is_silent, load_audio, name_of, open_audio
from ecapa_jax.batching import minimum_samples
from ecapa_jax.config import ModelConfig, Short
from ecapa_jax.errors import AudioError, ConfigError, levels_to_user


class SilenceWarning(UserWarning):
    """A recording has no signal, so that its embedding does not describe a speaker."""


class NoSpeechWarning(UserWarning):
    """A recording holds no speech, so that its embedding does not describe a speaker."""


def as_list(sources: AudioSource | Iterable[AudioSource]) -> list[AudioSource]:
    """Returns one or several recordings as a list."""
    is_one = (
        isinstance(sources, str | bytes | bytearray | memoryview)
        or is_dataset_row(sources)
        or hasattr(sources, "__fspath__")
    )
    if is_one or hasattr(sources, "read") or hasattr(sources, "__array__"):
        return [sources]  # type: ignore[list-item]
    return list(sources)  # type: ignore[arg-type]


def warn_of_silence(source: AudioSource, audio: np.ndarray | LongAudio) -> None:
    """Warns if a recording that has been read has no signal."""
    if audio.is_silent if isinstance(audio, LongAudio) else is_silent(audio):
        faint = "all samples are equal, or less than a step of 16 bits apart"
        message = f"{name_of(source)} has no signal ({faint}): its embedding means nothing"
        warnings.warn(message, SilenceWarning, stacklevel=levels_to_user())


def warn_of_no_speech(source: AudioSource) -> None:
    """Warns that a recording holds no speech."""
    message = f"{name_of(source)} holds hardly any speech (less than half a second): its embedding means nothing"
    warnings.warn(message, NoSpeechWarning, stacklevel=levels_to_user())


def open_recording(
    config: ModelConfig,
    source: AudioSource,
    sample_rate: int | str | None,
    short: Short,
    longest: float = math.inf,
    channel: Channel | None = None,
) -> Float32[np.ndarray, " samples"] | LongAudio:
    """Reads at least `minimum_samples(config)` samples; returns a longer recording than `longest` seconds as a stream.

    Args:
      config: the model.
      source, sample_rate: as for `load_audio`.
      short: what to do with a recording that is too short: `error` refuses it, `repeat` repeats its samples.
      longest: seconds from which on the recording is returned as a `LongAudio`.
      channel: channel of a recording with several; None means the channel that the model takes.

    Raises:
      AudioError: the source can't be read, is too short, or holds samples that are not finite.
      ConfigError: `short` is unknown.
    """
    if short not in ("error", "repeat"):
        raise ConfigError(f"short is {short!r}; it must be 'error' or 'repeat'")
    rate, minimum = config.fbank.sample_rate, minimum_samples(config)
    channel = config.fbank.channel if channel is None else channel
    if longest == math.inf:
        audio = load_audio(source, sample_rate=sample_rate, target_rate=rate, channel=channel)
    else:
        found = open_audio(source, sample_rate=sample_rate, target_rate=rate, channel=channel, longest=longest)
        if isinstance(found, LongAudio):
            return found
        audio = found
    if len(audio) >= minimum:
        return audio
    if short == "error":
        raise AudioError(
            f"{name_of(source)} is too short: {len(audio)} samples at {rate} Hz, this model needs {minimum} "
            f"({1000 * minimum / rate:.0f} ms); record more, or repeat it (short='repeat', --short repeat)"
        )
    return np.resize(audio, minimum)
