"""`ecapa-jax train CONFIG -o RUN_DIR [--set a.b=c ...]`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ecapa_jax.cli.common import Output, OutputOptions


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model; the same command goes on after any end.

    Weights come from the newest checkpoint in RUN_DIR, else start.run, else start.bundle, else they are drawn.
    """

    config: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """TOML file, or the name of a packaged recipe: voxceleb2_3dspeaker, voxceleb2_wespeaker, voxceleb2_wespeaker_lm,
    voxceleb_speechbrain, mini, smoke."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="RUN_DIR")]
    """Folder of the run: checkpoints, metrics.jsonl, timings.jsonl, tensorboard, curves.png, bundle."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="SECTION.KEY=VALUE", help_behavior_hint="")
    ] = ()
    """Change a value of the configuration, as in --set data.manifest=M; may be given again."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Trains to the end, or until asked to stop."""
        from ecapa_jax import runtime
        from ecapa_jax.cli.progress import TrainProgress, stop_signals
        from ecapa_jax.errors import Stopped
        from ecapa_jax.train.loop import train
        from ecapa_jax.train.settings import load_config

        runtime.use_compile_cache()
        config = load_config(self.config, self.set)
        with stop_signals() as stop, TrainProgress(quiet=self.output.quiet) as progress:
            result = train(config, Path(self.out), progress, stop.is_set)
        if not result.finished:
            raise Stopped(f"stopped at step {result.step}, saved in {self.out}; run the same command to go on")
        dev = None if result.dev is None else dataclasses.asdict(result.dev)
        figures = "" if result.dev is None else f"; dev EER {result.dev.eer:.2%}, minDCF {result.dev.min_dcf:.3f}"
        self.output.result(
            {"bundle": str(result.bundle), "steps": result.step, "dev": dev},
            f"{result.bundle}: trained {result.step} steps{figures}",
        )
