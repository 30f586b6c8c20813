"""Measures every family and writes the table of docs/conversion.md.

    python benchmarks/parity_table.py [--check]

If a family's PyTorch code is installed (make peers), the script runs it at the published width. Otherwise it uses the
packaged golden values. Weights are random, from a seed, so the figures describe this library's arithmetic and not a
trained model. With --check, the script compares the result with the existing table, up to a factor of ten, and writes
nothing.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ecapa_jax import functional
from ecapa_jax.convert import parity
from ecapa_jax.convert.family import Family
from ecapa_jax.convert.readers.checkpoint import read_checkpoint
from ecapa_jax.convert.rules import apply_rules, invert_rules
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.convert.torch_writer import write_torch_zip

PAGE = Path(__file__).parents[1] / "docs" / "conversion.md"
BEGIN, END = "<!-- parity_table.py writes this table -->", "<!-- end of the table -->"
HEAD = """\
| family | channels | reference | features | worst stage | embedding | batch = single | export round trip |
|---|--:|---|--:|--:|--:|--:|---|"""


def main() -> int:
    rows = [_row(family) for family in FAMILIES.values()]
    table = "\n".join([BEGIN, "", HEAD, *rows, "", END])
    print(table)
    page = PAGE.read_text("utf-8")
    old = page[page.index(BEGIN) : page.index(END) + len(END)]
    if "--check" in sys.argv:
        return _compare(old, table)
    PAGE.write_text(page.replace(old, table), "utf-8")
    return 0


def _row(family: Family) -> str:
    config, variables = parity.golden_model(family)
    if _is_live(family):
        config, variables = parity.golden_model(family, parity.preset_of(family))
    report = parity.full_report(family, config, variables)
    errors = {name: error["max_abs_over_max"] for name, error in report["errors"].items()}
    stages = {name: error for name, error in errors.items() if name not in ("features", "embedding")}
    worst = max(stages, key=stages.__getitem__)
    return (
        f"| {family.title} (`{family.name}`) | {config.ecapa.channels[0]} | {report['reference']}: "
        f"{report['reference_code']} | {errors['features']:.0e} | {stages[worst]:.0e} ({worst}) | "
        f"{errors['embedding']:.0e} | {report['batch_equals_single']:.0e} | {_round_trip(family, config, variables)} |"
    )


def _is_live(family: Family) -> bool:
    try:
        from ecapa_jax.convert import live
    except ImportError:
        return False
    return live.available(family.name, parity.preset_of(family).ecapa) is not None


def _round_trip(family: Family, config: Any, variables: dict[str, Any]) -> str:
    """Converts source tensors to variables, to a PyTorch file, and back to source tensors, and compares the bits."""
    rules = family.rules(config.ecapa)
    source = invert_rules(rules, variables)
    ours, _ = apply_rules(rules, family.ignored, source, functional.abstract(config))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        write_torch_zip(path, invert_rules(rules, ours))
        written: Any = read_checkpoint(path).content
    same = list(written) == list(source) and all(_bits(written[name]) == _bits(source[name]) for name in source)
    return f"{len(source)} tensors bit-identical" if same else "DIFFERS"


def _bits(tensor: np.ndarray) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.tobytes()


def _compare(old: str, new: str) -> int:
    pattern = r"\d\.?\d*e[-+]\d+"
    before, after = ([float(x) for x in re.findall(pattern, text)] for text in (old, new))
    shape_differs = re.sub(pattern, "", old) != re.sub(pattern, "", new)
    if shape_differs or any(b > max(10 * a, 1e-6) for a, b in zip(before, after, strict=True)):
        print("the table of docs/conversion.md is out of date: python benchmarks/parity_table.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
