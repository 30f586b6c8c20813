"""The dev trials that a run is judged by."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import ConfigError
from ecapa_jax.functional import Variables
from ecapa_jax.io.audio import load_audio
from ecapa_jax.scoring.metrics import eer, eer_threshold, far_frr, min_dcf
from ecapa_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class DevResult:
    """Figures of one evaluation; the threshold is the one of equal error rates."""

    eer: float
    min_dcf: float
    threshold: float
    far: float
    frr: float
    n_trials: int


@functools.lru_cache(maxsize=1)
def dev_trials(config: TrainConfig) -> DevTrials:
    """The trials of a run, kept for the next call: a run that goes on in the same process need not compile again."""
    return DevTrials(config)


class DevTrials:
    """Scores a list by cosine with whatever variables it is given; decodes and compiles once.

    Raises:
      ConfigError: the list or a recording of it is missing or malformed.
    """

    def __init__(self, config: TrainConfig):
        path, root = Path(config.run.dev_trials), Path(config.run.dev_root)
        self.name = path.stem
        labels, enrol, test = _read(path)
        names = sorted({*enrol, *test})
        missing = [name for name in names if not (root / name).is_file()]
        if missing:
            raise ConfigError(f"run.dev_root: {len(missing)} files of {path} are missing in {root}, first {missing[0]}")
        rows = {name: row for row, name in enumerate(names)}
        self._labels = labels
        self._enrol, self._test = ([rows[name] for name in side] for side in (enrol, test))
        self._config = config.model
        self._encoder: SpeakerEncoder | None = None
        front_end = config.model.fbank
        limit = round(config.run.dev_seconds * front_end.sample_rate)
        self._waveforms = [
            load_audio(root / name, sample_rate=None, target_rate=front_end.sample_rate, channel=front_end.channel)[
                :limit
            ]
            for name in names
        ]

    def evaluate(self, variables: Variables) -> DevResult:
        """EER and minDCF (p_target 0.01, both costs 1) of these weights."""
        if self._encoder is None:
            self._encoder = SpeakerEncoder(self._config, variables)
        placement = jax.tree.leaves(self._encoder.variables)[0].sharding
        self._encoder.variables = jax.device_put(variables, placement)
        unit = self._encoder.embed(self._waveforms, short="repeat")
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        scores = np.einsum("nd,nd->n", unit[self._enrol], unit[self._test])
        threshold = eer_threshold(scores, self._labels)
        far, frr = far_frr(scores, self._labels, threshold)
        figures = eer(scores, self._labels), min_dcf(scores, self._labels)
        return DevResult(*figures, threshold, far, frr, len(scores))


def _read(path: Path) -> tuple[np.ndarray, list[str], list[str]]:
    try:
        rows = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"run.dev_trials: {path} can't be read ({error.strerror})") from error
    for number, row in enumerate(rows, 1):
        if len(row) != 3 or row[0] not in ("0", "1"):
            raise ConfigError(f"run.dev_trials: {path}:{number} is not `label path path` with label 0 or 1")
    labels = np.array([row[0] == "1" for row in rows], bool)
    if not labels.any() or labels.all():
        raise ConfigError(f"run.dev_trials: {path} must hold target and non-target trials")
    return labels, [row[1] for row in rows], [row[2] for row in rows]
