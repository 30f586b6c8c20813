"""`ecapa-jax train CONFIG -o RUN_DIR [--set a.b=c ...]`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ecapa_jax.cli.common import Output, OutputOptions, packaged_recipes

if TYPE_CHECKING:
    from ecapa_jax.train.dev import DevResult


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model; the same command continues an interrupted run.

    Weights come from the newest checkpoint in RUN_DIR, else start.run, else start.bundle. Without
    any of these they are initialized at random.
    """

    config: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="CONFIG", help=f"TOML file, or the name of a packaged recipe: {', '.join(packaged_recipes())}."
        ),
    ]
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="RUN_DIR")]
    """Folder of the run: checkpoints, metrics.jsonl, timings.jsonl, tensorboard, curves.png, bundle, best_bundle."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="SECTION.KEY=VALUE", help_behavior_hint="")
    ] = ()
    """Change a value of the configuration, as in --set data.manifest=M. May be given several times."""
    processes: Annotated[int, tyro.conf.arg(help_behavior_hint="(default: 1)")] = 1
    """Number of processes to start on this machine. With mesh.data=0 a single process uses all devices."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """Address of process 0, for a run on several machines without Slurm, GKE or TPU-VMs, which provide it."""
    process_count: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Number of processes of the run, over all machines."""
    process_index: Annotated[int | None, tyro.conf.arg(metavar="I", help_behavior_hint="")] = None
    """Index of this process, from 0."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Trains to the end, or until asked to stop."""
        from ecapa_jax.cli.progress import stop_signals
        from ecapa_jax.errors import ConfigError
        from ecapa_jax.runtime.machine import join_cluster, keep_memory
        from ecapa_jax.train.scale.launch import launch
        from ecapa_jax.train.settings import load_config

        load_config(self.config, self.set)
        placed = any(flag is not None for flag in (self.coordinator, self.process_count, self.process_index))
        if self.processes < 1 or (self.processes > 1 and placed):
            raise ConfigError(
                "--processes starts at least one process on this machine and sets its address and index: leave out "
                "--coordinator, --process-count and --process-index"
            )
        if self.processes > 1:
            with stop_signals() as stop:
                launch(self._command(), self.processes, stop.is_set)
            return
        keep_memory()
        join_cluster(self.coordinator, self.process_count, self.process_index)
        self._train()

    def _command(self) -> list[str]:
        """This command for one of several processes."""
        changes = [part for change in self.set for part in ("--set", change)]
        options = [f"--{name}" for name in ("json", "quiet", "debug") if getattr(self.output, name)]
        program = [sys.executable, "-m", "ecapa_jax.cli.main", "train"]
        return [*program, self.config, "--out", self.out, *changes, *options]

    def _train(self) -> None:
        from ecapa_jax.cli.progress import TrainProgress, stop_signals
        from ecapa_jax.errors import Stopped
        from ecapa_jax.runtime import compile_cache
        from ecapa_jax.train.loop import train
        from ecapa_jax.train.scale.processes import explain_lost_processes
        from ecapa_jax.train.settings import load_config

        compile_cache.use_compile_cache(shortest=0.1)
        config = load_config(self.config, self.set)
        with stop_signals() as stop, TrainProgress(quiet=self.output.quiet) as progress, explain_lost_processes():
            result = train(config, Path(self.out), progress, stop.is_set)
        if not result.finished:
            raise Stopped(f"stopped at step {result.step}, saved in {self.out}; run the same command again to continue")
        found = {"bundle": str(result.bundle), "steps": result.step, "dev": _document(result.dev)}
        told = f"{result.bundle}: trained {result.step} steps{_figures(result.dev)}"
        if result.best_bundle:
            found |= {"best_bundle": str(result.best_bundle), "best_dev": _document(result.best_dev)}
            told += f"\n{result.best_bundle}: the best checkpoint{_figures(result.best_dev)}"
        self.output.result(found, told)


def _document(dev: DevResult | None) -> dict[str, Any] | None:
    return None if dev is None else dataclasses.asdict(dev)


def _figures(dev: DevResult | None) -> str:
    return "" if dev is None else f"; dev EER {dev.eer:.2%}, minDCF {dev.min_dcf:.3f}"
