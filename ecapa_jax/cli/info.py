"""`ecapa-jax info [BUNDLE]`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ecapa_jax.cli.common import Output, OutputOptions


@dataclasses.dataclass(frozen=True)
class Info:
    """Describe a bundle: its network, front end, origin and threshold, and how its conversion was checked."""

    bundle: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(metavar="[BUNDLE]", help_behavior_hint="(default: the packaged model)"),
    ] = None
    """A bundle directory written by `ecapa-jax convert`, a .onnx file written by `ecapa-jax export`, or an address such
    as hf:ORG/NAME."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Reads the whole bundle, weights included, so that damage is noticed."""
        import jax

        from ecapa_jax import api, functional
        from ecapa_jax.bundle.bundle import load_bundle, read_document
        from ecapa_jax.bundle.card import write_card
        from ecapa_jax.onnx_file import is_onnx

        path = api.resolve(self.bundle, progress=not self.output.quiet)
        if is_onnx(path):
            self._onnx(path)
            return
        bundle = load_bundle(path)
        document = read_document(path)
        derived = {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(bundle.variables["params"])),
            "minimum_samples": functional.minimum_samples(bundle.config),
        }
        text = write_card(document, bundle.operating_points, bundle.parity)
        text += "\n" + "\n".join(f"{key.replace('_', ' ')}: {value:,}" for key, value in derived.items())
        self.output.result(
            {**document, **derived, "operating_points": bundle.operating_points, "parity": bundle.parity}, text
        )

    def _onnx(self, path: Path) -> None:
        from ecapa_jax.config import to_dict
        from ecapa_jax.onnx_file import read_onnx

        file = read_onnx(path)
        value = {
            "input": file.takes,
            "precision": file.precision,
            "config": to_dict(file.config),
            "scoring": dataclasses.asdict(file.scoring),
            "provenance": file.provenance,
        }
        self.output.result(value, file.card.rstrip())
