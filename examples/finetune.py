"""Continues the training of a model on speakers of your own, with the library's training loop.

    pip install -e ".[train]"    # from a package index: pip install "ecapa-jax[train]"
    python examples/finetune.py SPEECH -o RUN [--model BUNDLE] [--steps 500]

SPEECH has one folder for each speaker. The script writes the checked list of utterances, the checkpoints and, at the
end, the bundle of the new model to RUN. If the run is interrupted, the same command continues it. All weights are
trained with a small learning rate and a new classifier for your speakers. The threshold of the old model does not fit
the new model, so set one with `ecapa-jax threshold`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ecapa_jax.api import resolve
from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.train.config import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    StartConfig,
    TrainConfig,
)
from ecapa_jax.train.data.manifest import read_manifest
from ecapa_jax.train.data.prepare import prepare
from ecapa_jax.train.loop import train


class PrintedProgress:
    """Prints the progress of the run line by line."""

    def note(self, text: str) -> None:
        print(text)

    def progress(self, step: int, total: int, line: dict[str, Any]) -> None:
        print(f"step {step} of {total}, loss {line.get('loss', float('nan')):.3f}")


def main() -> None:
    """Prepares the data, trains, and prints the path of the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="a folder with one folder a speaker")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--model", help="bundle directory or address; the packaged model unless given")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--crop-seconds", type=float, default=2.0)
    arguments = parser.parse_args()

    bundle = resolve(arguments.model)
    model = load_bundle(bundle).config
    manifest = arguments.out / "data" / "manifest.parquet"
    if not manifest.exists():
        made = prepare(arguments.speech, manifest.parent, rate=model.fbank.sample_rate)
        print(f"{made.utterances} utterances of {made.speakers} speakers, {made.hours:.2f} hours")
    n_speakers = len(read_manifest(manifest).speakers)
    config = TrainConfig(
        model=model,
        data=DataConfig(
            manifest=str(manifest),
            sampler="speakers",
            batch_size=min(32, n_speakers),  # a batch drawn by speaker has no speaker twice
            crop_seconds=arguments.crop_seconds,
            cache_gigabytes=1.0,
        ),
        augment=AugmentConfig(probability=0.5, rooms=64),  # generated noise and rooms
        loss=LossConfig(margin=0.2),
        optim=OptimConfig(
            name="adamw", peak=1e-4, floor=1e-6, warmup=arguments.steps / 10, weight_decay=0.02, clip_norm=5.0
        ),
        run=RunConfig(length=arguments.steps, log_every=min(10, arguments.steps), save_every=100),
        start=StartConfig(bundle=str(bundle)),
    )
    result = train(config, arguments.out / "run", PrintedProgress())
    print(f"trained {result.step} steps: {result.bundle}")


if __name__ == "__main__":
    main()
