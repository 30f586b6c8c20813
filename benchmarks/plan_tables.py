"""Makes the tables of docs/scale.md: training steps that the TPU compiler plans on this machine.

    python benchmarks/plan_tables.py --rows build/plans.json [--only memory|scaling]

Each row needs one to four compilations of half a minute to several minutes. Rows that are in the file are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from ecapa_jax.errors import EcapaError
from ecapa_jax.train.scale.plan import plan_step
from ecapa_jax.train.settings import load_config

EACH = 32  # utterances of 3 s per chip
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Row:
    topology: str
    chips: int
    speakers: int
    model: int
    limit: bool
    batch_norm: str = "global"


MEMORY = [
    Row("v5e:2x4", 8, 17_982, 1, True),
    Row("v5e:16x16", 256, 1_000_000, 16, False),
    Row("v5e:2x4", 8, 1_000_000, 8, False),
    Row("v5e:16x16", 256, 17_982, 1, False),
    Row("v6e:2x4", 8, 17_982, 1, False),
    Row("v6e:2x4", 8, 1_000_000, 8, False),
]
SCALING = [
    Row("v5e:1x1", 1, 17_982, 1, False),
    Row("v5e:4x4", 16, 17_982, 1, False),
    Row("v5e:8x8", 64, 17_982, 1, False),
    Row("v5e:16x16", 256, 17_982, 1, False, "replica"),
]


def plan_row(row: Row) -> dict[str, Any]:
    changes = [
        f"data.batch_size={EACH * row.chips}",
        "step.dtype=bfloat16",
        f"mesh.model={row.model}",
        f"mesh.batch_norm={row.batch_norm}",
    ]
    began = time.perf_counter()
    try:
        found = plan_step(load_config("voxceleb2_3dspeaker", changes), row.topology, row.speakers, limit=row.limit)
    except EcapaError as error:
        found = {"refused": str(error)}
    return {"row": dataclasses.asdict(row), "seconds_to_plan": round(time.perf_counter() - began), **found}


def memory_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| topology | speakers | mesh (data x model) | batch | arguments | temporaries | total, of | GFLOP a chip "
        "| messages a chip | largest batch |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory, limit, mesh = row["memory"], row["largest_batch"], row["mesh"]
        sent, number = (sum(kind[name] for kind in row["collectives"]) for name in ("n_bytes", "number"))
        largest = "" if limit is None else f"{limit['batch']}{'' if limit['confirmed'] else ' (not confirmed)'}"
        gib = [f"{memory[name] / GIB:.2f}" for name in ("arguments", "temporaries", "total", "available")]
        lines.append(
            f"| {row['topology']} | {row['speakers']} | {mesh['data']} x {mesh['model']} | {row['batch']} "
            f"| {gib[0]} | {gib[1]} | {gib[2]} of {gib[3]} GiB | {row['flops']['chip'] / 1e9:.0f} "
            f"| {number}, {sent / 2**20:.1f} MiB | {largest} |"
        )
    return "\n".join(lines)


def scaling_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| chips | batch norm | batch | products | memory | links | step at least | messages, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["chips"], row["row"]["batch_norm"])):
        taken = {name: f"{1000 * value:.2f} ms" for name, value in row["seconds"].items()}
        sent, number = (sum(kind[name] for kind in row["collectives"]) for name in ("n_bytes", "number"))
        lines.append(
            f"| {row['chips']} | {row['row']['batch_norm']} | {row['batch']} | {taken['products']} | {taken['memory']} "
            f"| {taken['links']} | {taken['step']} | {number}, {sent / 2**20:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=Path("build/plans.json"))
    parser.add_argument("--only", choices=["memory", "scaling"])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(options.rows.read_text()) if options.rows.exists() else []
    wanted = {"memory": MEMORY, "scaling": SCALING}
    for row in wanted[options.only] if options.only else MEMORY + SCALING:
        if any(known["row"] == dataclasses.asdict(row) for known in rows):
            continue
        rows.append(plan_row(row))
        options.rows.parent.mkdir(parents=True, exist_ok=True)
        options.rows.write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    fitting = [row for row in rows if "refused" not in row]
    keys = {json.dumps(dataclasses.asdict(row)) for row in MEMORY}
    print(memory_table([row for row in fitting if json.dumps(row["row"]) in keys]))
    small = [row for row in fitting if row["speakers"] == 17_982 and row["topology"].startswith("v5e")]
    print(scaling_table(small))


if __name__ == "__main__":
    main()
