"""Random weights of one width, on disk, so that every engine and every process has the same."""

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
    """An ECAPA-TDNN of `width` channels whose files are in `folder`; `write` makes them.

    The network is the one that 3D-Speaker and SpeechBrain share, so that one set of tensors fills both.
    """

    width: int
    folder: Path

    def config(self, family: str = "3dspeaker") -> ModelConfig:
        """Front end of the family, network of this width."""
        base = PRESETS[family]
        ecapa = dataclasses.replace(base.ecapa, channels=(self.width,) * 4, mfa_channels=3 * self.width)
        return dataclasses.replace(base, ecapa=ecapa)

    @property
    def onnx(self) -> Path:
        """3D-Speaker's network, exported."""
        return self.folder / f"c{self.width}.onnx"

    @property
    def _weights(self) -> Path:
        return self.folder / f"c{self.width}.safetensors"

    def tensors(self) -> dict[str, np.ndarray]:
        """In the layout of both publishers, without counters."""
        return load_file(self._weights)

    def write(self) -> None:
        """Weights from a fixed seed. The largest of them are not trained ones': no time depends on that."""
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
    """[B, S] waveforms at 16 kHz."""
    generator = np.random.default_rng(0)
    return (0.1 * generator.standard_normal((batch, round(seconds * RATE)))).astype(np.float32)


def random_features(batch: int, seconds: float) -> np.ndarray:
    """[B, T, 80], T as Kaldi counts frames."""
    n_frames = 1 + (round(seconds * RATE) - 400) // 160
    return np.random.default_rng(1).standard_normal((batch, n_frames, 80)).astype(np.float32)


def cores() -> int:
    """Processor cores that this process may use; every engine gets as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
