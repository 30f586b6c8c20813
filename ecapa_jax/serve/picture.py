"""The data of the page's pictures: a recording's waveform, and the features that the network receives."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.features.fbank import fbank
from ecapa_jax.masks import bucket_length, mask_lengths

PEAKS = 400
COLUMNS = 800
_RANGE = (1.0, 99.8)  # percentiles drawn as the darkest and the brightest


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """The pictures of one recording.

    Attributes:
      peaks: [p, 2], lowest and highest sample of each equal part.
      frames: number of frames that the network receives.
      features: [mels, columns], from `lowest` at 0 to `highest` at 255; neighbouring frames are averaged if there
        are more than `COLUMNS`.
    """

    peaks: Float32[np.ndarray, "parts 2"]
    frames: int
    lowest: float
    highest: float
    features: UInt8[np.ndarray, "mels columns"]


class Painter:
    """Makes pictures for one model; compiles the front end once for each length bucket."""

    def __init__(self, encoder: SpeakerEncoder):
        config = encoder.config.fbank
        self._rate = config.sample_rate
        self._constants = encoder.variables["constants"]
        self._fbank = jax.jit(functools.partial(fbank, config))

    def picture(self, waveform: Float32[np.ndarray, " samples"]) -> Picture:
        """Returns the picture of a waveform, which has the form that `SpeakerEncoder.read` returns."""
        features = self.features(waveform)
        columns = _average_columns(features, COLUMNS)
        lowest, highest = (float(value) for value in np.percentile(columns, _RANGE))
        scaled = (columns - lowest) / max(highest - lowest, 1e-6)
        image = np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8).T
        return Picture(_compute_peaks(waveform), len(features), lowest, highest, image)

    def features(self, waveform: Float32[np.ndarray, " samples"]) -> Float32[np.ndarray, "frames mels"]:
        """Returns the network's input, without padding."""
        padded = np.zeros((1, bucket_length(len(waveform), self._rate & ~3)), np.float32)
        padded[0, : len(waveform)] = waveform
        features, mask = self._fbank(padded, np.array([len(waveform)], np.int32), self._constants)
        return np.asarray(features[0])[: int(mask_lengths(mask)[0])]


def _average_columns(features: Float32[np.ndarray, "frames mels"], columns: int) -> Float32[np.ndarray, "columns mels"]:
    if len(features) <= columns:
        return features
    starts = np.linspace(0, len(features), columns, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(features)))
    return np.add.reduceat(features, starts, axis=0) / counts[:, None].astype(np.float32)


def _compute_peaks(waveform: Float32[np.ndarray, " samples"]) -> Float32[np.ndarray, "parts 2"]:
    starts = np.linspace(0, len(waveform), min(PEAKS, len(waveform)), endpoint=False).astype(int)
    return np.stack([np.minimum.reduceat(waveform, starts), np.maximum.reduceat(waveform, starts)], axis=1)
