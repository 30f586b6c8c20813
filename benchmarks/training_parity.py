"""Plots the difference between this library's training and PyTorch's, from the same weights on the same batches.

    python benchmarks/training_parity.py [-o docs/images/training_parity.png]

The PyTorch side has 3D-Speaker's network, classifier, margin and schedulers with torch.optim.SGD, which `make peers`
installs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.training_originals import step_differences

BOUNDS = {"float64": 1e-8, "float32": 1e-4}
"""Bounds that tests/peers/test_training_parity.py checks: for all steps, and for the first gradient."""


def main() -> None:
    """Runs both dtypes, prints the differences, and plots them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("training_parity.png"))
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, dtype in zip(figure.subplots(1, 2, sharey=True), BOUNDS, strict=True):
        with jax.enable_x64(dtype == "float64"):
            every = [dataclasses.asdict(gap) for gap in step_differences(np.dtype(dtype).type)]
        for name in every[0]:
            values = [gap[name] for gap in every]
            print(f"{dtype} {name}: first {values[0]:.1e}, worst {max(values):.1e}")
            axes.semilogy(range(1, len(every) + 1), np.maximum(values, 1e-17), marker=".", label=name)
        axes.axhline(
            BOUNDS[dtype], color="grey", linestyle="--", label="bound" + " (first gradient)" * (dtype == "float32")
        )
        axes.set(title=dtype, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle("ecapa-jax less PyTorch: relative loss and gradient, absolute weights and running statistics")
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
