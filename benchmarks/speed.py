"""Times recordings to embeddings beside PyTorch: the same weights, the same waveforms, in turn.

    python benchmarks/speed.py [--widths 512 1024] [--batches 1 16] [--seconds 1 3 10] [--turns 7]

Theirs is 3D-Speaker's pipeline: torchaudio's Kaldi fbank of each waveform, mean subtracted, then its ECAPA_TDNN, eager,
float32. Ours is the one jitted function that `SpeakerEncoder` calls. Needs what `make peers` installs; run it on an
idle machine. Weights are random: they change no time.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from speakerlab.models.ecapa_tdnn.ECAPA_TDNN import ECAPA_TDNN
from torchaudio.compliance import kaldi

from ecapa_jax import functional
from ecapa_jax.config import ModelConfig
from ecapa_jax.convert.rules import invert_rules
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.presets import PRESETS

RATE = 16000


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 3.0, 10.0])
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    print(
        f"{cpu_name()}, {torch.get_num_threads()} threads; jax {jax.__version__}, torch {torch.__version__}, float32\n"
    )
    print("| C | batch | seconds | ecapa-jax ms | PyTorch ms | times as fast | largest difference |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for width in arguments.widths:
        ours, theirs = engines(width)
        for batch in arguments.batches:
            for seconds in arguments.seconds:
                print(row(width, batch, seconds, ours, theirs, arguments.turns), flush=True)


def engines(width: int) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """Ours and theirs, with the same weights: [B, S] to [B, 192]."""
    base = PRESETS["3dspeaker"]
    ecapa = dataclasses.replace(base.ecapa, channels=(width,) * 4, mfa_channels=3 * width)
    config = dataclasses.replace(base, ecapa=ecapa)
    variables = functional.init(config, jax.random.key(0))
    embed = jax.jit(functional.embed, static_argnums=0)

    def ours(waveforms: np.ndarray) -> np.ndarray:
        return np.asarray(embed(config, variables, waveforms, np.full(len(waveforms), waveforms.shape[1], np.int32)))

    return ours, pytorch(config, variables)


def pytorch(config: ModelConfig, variables: dict) -> Callable[[np.ndarray], np.ndarray]:
    """3D-Speaker's front end and network."""
    ecapa = config.ecapa
    network = ECAPA_TDNN(80, channels=[*ecapa.channels, ecapa.mfa_channels], lin_neurons=ecapa.embedding_dim).eval()
    tensors = invert_rules(sb_layout.rules(ecapa), jax.tree.map(np.asarray, variables))
    network.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in tensors.items()}, strict=False)

    def theirs(waveforms: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            features = [kaldi.fbank(wave[None], num_mel_bins=80) for wave in torch.from_numpy(waveforms)]
            features = torch.stack([feature - feature.mean(0, keepdim=True) for feature in features])
            return network(features).numpy()

    return theirs


def row(width: int, batch: int, seconds: float, ours: Callable, theirs: Callable, turns: int) -> str:
    """Medians of calls in turn, and how far the embeddings are apart, over the largest value."""
    generator = np.random.default_rng(0)
    waveforms = (0.1 * generator.standard_normal((batch, round(seconds * RATE)))).astype(np.float32)
    a, b = ours(waveforms), theirs(waveforms).reshape(batch, -1)  # the first call compiles
    gap = np.abs(a - b).max() / np.abs(b).max()
    times: list[tuple[float, float]] = [(timed(ours, waveforms), timed(theirs, waveforms)) for _ in range(turns)]
    mine, other = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(t / o for o, t in times)
    return f"| {width} | {batch} | {seconds:g} | {1e3 * mine:.0f} | {1e3 * other:.0f} | {ratio:.2f} | {gap:.0e} |"


def timed(function: Callable, waveforms: np.ndarray) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    function(waveforms)
    return time.perf_counter() - begin


def cpu_name() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
