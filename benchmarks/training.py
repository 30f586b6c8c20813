"""Compares the time of a training step with PyTorch: same network, loss, optimizer, batch and crop, in turn.

    python benchmarks/training.py [--width 512] [--batch 32] [--seconds 2] [--steps 8]

The PyTorch step is 3D-Speaker's ECAPA_TDNN with AAM-softmax and torch.optim.AdamW, eager. It is measured once from
waveforms, with torchaudio's fbank of each utterance as in 3D-Speaker's recipe, and once on precomputed features. The
step of this library is the whole jitted step from waveforms. Each step runs in a separate process; that of this library
keeps its memory as `ecapa-jax train` does. The script needs the packages of `make peers` and an idle machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi
from speakerlab.loss.margin_loss import ArcMarginLoss
from speakerlab.models.campplus.classifier import CosineClassifier
from speakerlab.models.ecapa_tdnn.ECAPA_TDNN import ECAPA_TDNN

from ecapa_jax.runtime import machine
from ecapa_jax.train.schedules import Clock
from ecapa_jax.train.settings import build_config
from ecapa_jax.train.state import init_state
from ecapa_jax.train.step import StepSetup, compiled_step

SPEAKERS, RATE, FRAME_SHIFT = 481, 16000, 160
DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Measures the times and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.015)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    steps = {f"{who} {dtype}": start_process(who, arguments, dtype) for dtype in DTYPES for who in MAKERS}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.steps + 2):
        for name, (_, pipe) in steps.items():
            pipe.send(True)
            seconds = pipe.recv()
            if turn > 1:  # the first step compiles, and the second allocates memory
                times[name].append(seconds)
    for process, pipe in steps.values():
        pipe.send(False)
        process.join()
    report(arguments, times)


def start_process(who: str, arguments: argparse.Namespace, dtype: str) -> tuple[Any, Any]:
    """Starts a process that runs a step on request; returns the process and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, who, arguments, dtype), daemon=True)
    process.start()
    return process, here


def serve(pipe: Any, who: str, arguments: argparse.Namespace, dtype: str) -> None:
    """Runs a step for each request and sends its seconds, until the request to end."""
    step = MAKERS[who](arguments, dtype)
    while pipe.recv():
        begin = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - begin)


def make_our_step(arguments: argparse.Namespace, dtype: str) -> Callable[[], None]:
    """Returns a function that runs one step of this library, with the state on the device."""
    machine.keep_memory()
    config = build_config(
        {
            "model": {"ecapa": {"channels": [arguments.width] * 4, "mfa_channels": 3 * arguments.width}},
            "data": {"batch_size": arguments.batch, "crop_seconds": arguments.seconds},
            "loss": {"scale": 30.0},
            "optim": {"name": "adamw", "peak": 1e-3, "weight_decay": 0.02, "clip_norm": 5.0},
            "step": {"dtype": dtype},
        }
    )
    step = compiled_step(StepSetup.of(config, Clock.of(config.run, 1)))
    generator = np.random.default_rng(0)
    n_samples = round(arguments.seconds * RATE)
    batch = jax.device_put(
        {
            "waveforms": generator.integers(-3000, 3000, (arguments.batch, n_samples)).astype(np.int16),
            "lengths": np.full(arguments.batch, n_samples, np.int32),
            "labels": generator.integers(0, SPEAKERS, arguments.batch).astype(np.int32),
        }
    )
    held = [init_state(config, SPEAKERS)]

    def run_step() -> None:
        held[0] = jax.block_until_ready(step({}, held[0], batch))

    return run_step


def make_step_from_features(arguments: argparse.Namespace, dtype: str) -> Callable[[], None]:
    """Returns a function that runs one step of PyTorch on precomputed features."""
    n_frames = 1 + (round(arguments.seconds * RATE) - 400) // FRAME_SHIFT
    features = torch.randn(arguments.batch, n_frames, 80)
    step = make_pytorch_step(arguments, dtype)
    return lambda: step(features)


def make_step_from_waveforms(arguments: argparse.Namespace, dtype: str) -> Callable[[], None]:
    """Returns a function that runs one step of PyTorch with the front end of `speakerlab.process.processor.FBank`."""
    waveforms = torch.rand(arguments.batch, round(arguments.seconds * RATE)) * 0.2 - 0.1
    step = make_pytorch_step(arguments, dtype)

    def features(waveform: torch.Tensor) -> torch.Tensor:
        bands = kaldi.fbank(waveform[None], num_mel_bins=80, sample_frequency=RATE, dither=0)
        return bands - bands.mean(0, keepdim=True)

    return lambda: step(torch.stack([features(waveform) for waveform in waveforms]))


def make_pytorch_step(arguments: argparse.Namespace, dtype: str) -> Callable[[torch.Tensor], None]:
    """Returns a function that updates the weights from features."""
    width = arguments.width
    network = ECAPA_TDNN(80, lin_neurons=192, channels=[width] * 4 + [3 * width]).train()
    classifier, loss = CosineClassifier(192, out_neurons=SPEAKERS), ArcMarginLoss(scale=30.0, margin=0.2)
    parameters = [*network.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.02)
    labels = torch.randint(0, SPEAKERS, (arguments.batch,))

    def run_step(features: torch.Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            embeddings = network(features)
        value = loss(classifier(embeddings.float()), labels)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()

    return run_step


def report(arguments: argparse.Namespace, times: dict[str, list[float]]) -> None:
    """Prints medians and ratios of times that were measured in turn."""
    print(f"{cpu_name()}, {torch.get_num_threads()} threads; jax {jax.__version__}, torch {torch.__version__}")
    print(f"C = {arguments.width}, batch {arguments.batch}, {arguments.seconds} s, {arguments.steps} steps in turn\n")
    print("| step | median ms | fastest ms |\n|---|--:|--:|")
    for name, seconds in times.items():
        print(f"| {name} | {1e3 * statistics.median(seconds):.0f} | {1e3 * min(seconds):.0f} |")
    print()
    best = {who: min((times[f"{who} {dtype}"] for dtype in DTYPES), key=statistics.median) for who in MAKERS}
    own, *others = MAKERS
    for who in others:
        for dtype in DTYPES:
            print(f"{dtype}: {ratio(times[f'{who} {dtype}'], times[f'{own} {dtype}']):.2f} times as fast as {who}")
        print(f"each at its best dtype: {ratio(best[who], best[own]):.2f} times as fast as {who}")


def ratio(theirs: list[float], make_our_step: list[float]) -> float:
    """Returns the median of the ratios of all turns."""
    return statistics.median(t / o for t, o in zip(theirs, make_our_step, strict=True))


def cpu_name() -> str:
    """Returns the CPU name that the operating system reports."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


MAKERS = {
    "ecapa-jax": make_our_step,
    "PyTorch": make_step_from_waveforms,
    "PyTorch on ready features": make_step_from_features,
}

if __name__ == "__main__":
    main()
