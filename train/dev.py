"""The dev trials on which a run is evaluated."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from ecapa_jax.audio.load import load_audio
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import ConfigError
from ecapa_jax.evaluation.trials import read_trials
from ecapa_jax.functional import Variables
from ecapa_jax.scoring.metrics import eer, eer_threshold, far_frr, min_dcf
from ecapa_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class DevResult:
    """Figures of one evaluation; `threshold` is the threshold of equal error rates."""

    eer: float
    min_dcf: float
    threshold: float
    far: float
    frr: float
    n_trials: int


@functools.lru_cache(maxsize=1)
def dev_trials(config: TrainConfig) -> DevTrials:
    """Returns the trials of a run, cached, so that a run continued in the same process need not compile again."""
    return DevTrials(config)


class DevTrials:
    """Scores a trial list by cosine with any variables; decodes the recordings and compiles only once.

    Raises:
      TrialError: the list can't be read or is malformed.
      ConfigError: the list has only one kind of trial, or a recording is missing.
    """

    def __init__(self, config: TrainConfig):
        path, root = Path(config.run.dev_trials), Path(config.run.dev_root)
        self.name = path.stem
        self._trials = read_trials(path)
        self._labels = self._trials.known_labels
        if not self._labels.any() or self._labels.all():
            raise ConfigError(f"run.dev_trials: {path} must hold target and non-target trials")
        missing = [name for name in self._trials.names if not (root / name).is_file()]
        if missing:
            raise ConfigError(f"run.dev_root: {len(missing)} files of {path} are missing in {root}, first {missing[0]}")
        self._config = config.model
        self._encoder: SpeakerEncoder | None = None
        front_end = config.model.fbank
        limit = round(config.run.dev_seconds * front_end.sample_rate)
        self._waveforms = [
            load_audio(root / name, sample_rate=None, target_rate=front_end.sample_rate, channel=front_end.channel)[
                :limit
            ]
            for name in self._trials.names
        ]

    def evaluate(self, variables: Variables) -> DevResult:
        """Computes EER and minDCF (p_target 0.01, both costs 1) of these variables."""
        if self._encoder is None:
            self._encoder = SpeakerEncoder(self._config, variables)
        self._encoder.variables = variables
        unit = self._encoder.embed(self._waveforms, short="repeat")
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        scores = np.einsum("nd,nd->n", unit[self._trials.enrol], unit[self._trials.test])
        threshold = eer_threshold(scores, self._labels)
        far, frr = far_frr(scores, self._labels, threshold)
        figures = eer(scores, self._labels), min_dcf(scores, self._labels)
        return DevResult(*figures, threshold, far, frr, len(scores))
