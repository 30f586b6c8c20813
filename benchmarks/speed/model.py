"""Random weights of one width on disk, which all engines and processes share."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ecapa_jax.config import ModelConfig
from ecapa_jax.presets import PRESETS

RATE = 16000


@dataclasses.dataclass(frozen=True)
class Model:
    """An ECAPA-TDNN with `width` channels, whose files `write` writes to `folder`.

    3D-Speaker and SpeechBrain share this network, so one set of tensors fits both.
    """

    width: int
    folder: Path

    def config(self, family: str = "3dspeaker") -> ModelConfig:
        """Returns the front end of the family with the network of this width."""
        base = PRESETS[family]
        ecapa = dataclasses.replace(base.ecapa, channels=(self.width,) * 4, mfa_channels=3 * self.width)
        return dataclasses.replace(base, ecapa=ecapa)

    @property
    def onnx(self) -> Path:
        """The path of 3D-Speaker's exported network."""
        return self.folder / f"c{self.width}.onnx"

    @property
    def _weights(self) -> Path:
        return self.folder / f"c{self.width}.safetensors"

    def tensors(self) -> dict[str, np.ndarray]:
        """Reads the tensors in the layout of both publishers, without counters."""
        return load_file(self._weights)

    def write(self) -> None:
        """Writes weights from a fixed seed. Trained weights have other values, which does not affect the time."""
        import jax

        from ecapa_jax import functional
        from ecapa_jax.convert.rules import invert_rules
        from ecapa_jax.convert.sources import sb_layout

        config = self.config()
        variables = jax.tree.map(np.asarray, functional.init(config, jax.random.key(0)))
        tensors = invert_rules(sb_layout.rules(config.ecapa), variables)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, self._weights)


def noise(batch: int, seconds: float) -> np.ndarray:
    """Returns noise waveforms [B, S] at 16 kHz."""
    generator = np.random.default_rng(0)
    return (0.1 * generator.standard_normal((batch, round(seconds * RATE)))).astype(np.float32)


def random_features(batch: int, seconds: float) -> np.ndarray:
    """Returns random features [B, T, 80], with Kaldi's number of frames."""
    n_frames = 1 + (round(seconds * RATE) - 400) // 160
    return np.random.default_rng(1).standard_normal((batch, n_frames, 80)).astype(np.float32)


def cores() -> int:
    """Returns the number of CPU cores that this process may use, which is the number of threads of every engine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
