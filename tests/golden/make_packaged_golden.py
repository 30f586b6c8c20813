"""Makes convert/golden.npz, the small golden values that `ecapa-jax convert` uses, for every family.

    python tests/golden/make_packaged_golden.py

If a family's PyTorch code can be imported (`convert.live.ORIGINALS`), that code computes the values. Otherwise the
float64 oracle in tests/helpers/oracle.py computes them; other tests compare the oracle with golden values of the
original code. The weights are generated from a seed. The file contains their hash and the name of the code that
computed the values.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from ecapa_jax.convert import live, parity
from ecapa_jax.convert.family import Family
from ecapa_jax.convert.rules import flatten, invert_rules
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.features.frames import seen_count
from helpers import oracle
from helpers.weights import torch_name

TARGET = Path(__file__).parents[2] / "convert" / "golden.npz"


class RecordingOracle(oracle.Oracle):
    """The oracle, which also records the output of each stage."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.stages: dict[str, np.ndarray] = {}

    def tdnn(self, name: str, *arguments: Any, **options: Any) -> np.ndarray:
        y = super().tdnn(name, *arguments, **options)
        if name in ("blocks.0", "mfa"):
            self.stages["stem" if name == "blocks.0" else name] = y
        return y

    def block(self, index: int, x: np.ndarray) -> np.ndarray:
        self.stages[f"block_{index}"] = y = super().block(index, x)
        return y

    def pool(self, *arguments: Any) -> np.ndarray:
        self.stages["pooled"] = y = super().pool(*arguments)
        return y


def by_oracle(config: Any, variables: dict[str, Any], sound: np.ndarray) -> dict[str, np.ndarray]:
    leaves = {path: leaf for path, leaf in flatten(variables).items() if not path.startswith("constants/")}
    network = RecordingOracle(
        config.ecapa, {torch_name(path): np.ascontiguousarray(leaf.T) for path, leaf in leaves.items()}
    )
    features = oracle.fbank(config.fbank, sound)
    network.real = len(features)
    features = np.pad(features, ((0, seen_count(config.fbank, len(features)) - len(features)), (0, 0)))
    embedding = network(features)
    return {"features": features, **network.stages, "embedding": embedding}


def family_arrays(family: Family) -> dict[str, Any]:
    config, variables = parity.golden_model(family)
    sound = parity.waveform(config.fbank.sample_rate)
    if code := live.available(family.name, config.ecapa):
        stages = live.stages(family.name, config, invert_rules(family.rules(config.ecapa), variables), sound)
    else:
        code, stages = "float64 NumPy written from the published formulas", by_oracle(config, variables, sound)
    about = json.dumps({"code": re.sub(r"\+\w+", "", code), "weights": parity.weights_hash(variables)})
    print(family.name, code, {name: x.shape for name, x in stages.items()})
    return {
        f"{family.name}/about": about,
        **{f"{family.name}/{name}": x for name, x in parity.sample_stage(stages).items()},
    }


def main() -> None:
    arrays = {name: array for family in FAMILIES.values() for name, array in family_arrays(family).items()}
    np.savez_compressed(TARGET, **arrays)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
