"""`ecapa-jax plan CONFIG --topology v5e:16x16 [--set a.b=c ...]`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import tyro

from ecapa_jax.cli.common import Flag, Output, OutputOptions, packaged_recipes


@dataclasses.dataclass(frozen=True)
class PlanStep:
    """Estimate what a training step needs on TPUs that you do not have: memory, work, messages, the largest batch.

    `plan` compiles the step with the TPU compiler, which runs on a CPU (`pip install 'ecapa-jax[tpu]'`). It compiles up
    to five times, about a minute each; a classifier of a million speakers takes several minutes each.
    """

    config: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="CONFIG", help=f"TOML file, or the name of a packaged recipe: {', '.join(packaged_recipes())}."
        ),
    ]
    topology: Annotated[str, tyro.conf.arg(metavar="KIND:SHAPE")]
    """The chips, as in v5e:2x4, v5e:16x16, v6e:2x4 or v4:2x2x1. mesh.model is kept, and mesh.data becomes the number of
    chips divided by mesh.model."""
    speakers: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: as in data.manifest)")] = (
        None
    )
    """Number of classes of the loss, including speed-perturbed speakers."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="SECTION.KEY=VALUE", help_behavior_hint="")
    ] = ()
    """Change a value of the configuration, as for `train`. May be given several times."""
    quick: Flag = False
    """Compile only once, and do not look for the largest batch that fits."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Prints the plan."""
        from ecapa_jax.errors import ConfigError
        from ecapa_jax.train.scale.plan import plan_step
        from ecapa_jax.train.settings import load_config

        config = load_config(self.config, self.set)
        speakers = self.speakers
        if speakers is None:
            if not config.data.manifest:
                raise ConfigError("the classifier's size is not known: give --speakers N or --set data.manifest=M")
            from ecapa_jax.train.data.manifest import check_installed, read_manifest

            check_installed("pyarrow")
            speakers = len(read_manifest(config.data.manifest).speakers) * len(config.data.class_speeds)
        if speakers < 2:
            raise ConfigError(f"--speakers {speakers}: a classifier needs two or more")
        plan = plan_step(config, self.topology, speakers, limit=not self.quick)
        self.output.result(plan, _text(plan))


def _text(plan: dict[str, Any]) -> str:
    memory, flops, seconds, products = plan["memory"], plan["flops"], plan["seconds"], plan["products"]
    gib = {name: f"{value / 2**30:.2f} GiB" for name, value in memory.items()}
    mesh = f"{plan['mesh']['data']} x {plan['mesh']['model']}"
    lines = [
        f"{plan['topology']}: {plan['chips']} chips, mesh {mesh} (data x model), {plan['dtype']}",
        f"batch {plan['batch']}, {plan['speakers']} speakers",
        f"memory/chip    {gib['total']} of {gib['available']}: arguments {gib['arguments']}, "
        f"temporaries {gib['temporaries']}",
        f"work           {flops['chip'] / 1e9:.1f} GFLOP per chip, {flops['step'] / 1e12:.2f} TFLOP per step",
        f"products       {products['bfloat16']} bfloat16, {products['mixed']} mixed, {products['float32']} float32",
    ]
    lines += [
        f"{kind['kind']:<14} {kind['number']} among {kind['group']} chips, {kind['n_bytes'] / 2**20:.2f} MiB"
        for kind in plan["collectives"]
    ]
    lines.append(
        f"step at least  {1000 * seconds['step']:.1f} ms: products {1000 * seconds['products']:.1f}, memory "
        f"{1000 * seconds['memory']:.1f}, links {1000 * seconds['links']:.1f} (published peaks, no measurement)"
    )
    if plan["micro_batches"] > 1:
        lines.append(
            f"work, messages and time are those of the update and one of {plan['micro_batches']} micro-batches"
        )
    if plan["largest_batch"]:
        known = "compiled" if plan["largest_batch"]["confirmed"] else "an estimate, not compiled"
        lines.append(f"largest batch  {plan['largest_batch']['batch']} ({known})")
    return "\n".join(lines)
