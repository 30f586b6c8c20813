"""Makes families.npz: features and embeddings of the families with their own front end, from independent code.

    python tests/golden/make_families.py

The values are outputs of the publishers' PyTorch modules (requirements-peers.txt), float32 on a CPU. The code of
TaoRuijie is not a package, so the float64 oracle of the tests computes the values of that family. Names are those of
make_golden.py, with every 16th frame of the features.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import families, oracle, originals, parity
from helpers.weights import torch_name

PACKAGES = (
    *("torch", "torchaudio", "numpy"),
    *("nemo_toolkit", "espnet", "wespeaker-unofficial", "speakerlab", "speechbrain", "mvector"),
)


def by_oracle(family: str) -> originals.Original:
    config = families.config(family)
    own = {path: leaf for path, leaf in families.leaves(family).items() if not path.startswith("constants/")}
    network = oracle.Oracle(config.ecapa, {torch_name(path): leaf.T for path, leaf in own.items()})

    def run(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = oracle.fbank(config.fbank, waveform)
        return features.astype(np.float32), network(features).astype(np.float32)

    return run


def family_arrays(family: str) -> dict[str, Any]:
    weights = families.tensors(family)
    make = originals.ORIGINALS.get(family)
    run = make(families.config(family), weights) if make else by_oracle(family)
    arrays: dict[str, Any] = {f"{family}/weights": parity.weights_hash(weights)}
    for signal, waveform in families.signals().items():
        features, embedding = run(waveform)
        arrays[f"{family}/{signal}/frames"] = len(features)
        arrays[f"{family}/{signal}/features"] = features[:: parity.GOLDEN_STEP]
        arrays[f"{family}/{signal}/embedding"] = embedding
    return arrays


def main() -> None:
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    arrays = {name: array for family in families.SEEDS for name, array in family_arrays(family).items()}
    np.savez_compressed(families.GOLDEN, versions=json.dumps(versions), **arrays)
    print(f"{families.GOLDEN}: {families.GOLDEN.stat().st_size / 1e6:.2f} MB, {versions}")


if __name__ == "__main__":
    main()
