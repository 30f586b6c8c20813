"""`ecapa-jax export BUNDLE --to torch|safetensors|stablehlo -o OUT`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ecapa_jax.cli.common import Flag, Output, OutputOptions, local_path

if TYPE_CHECKING:
    from ecapa_jax.files.atomic import Identity


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a bundle for other programs: the original PyTorch code, or any that runs StableHLO."""

    bundle: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="BUNDLE")]
    """Bundle directory, as `ecapa-jax convert` writes it; `default` is the packaged model."""
    to: Literal["torch", "safetensors", "stablehlo"]
    """`torch`: the file that the source was, tensor by tensor. `safetensors`: the same tensors. `stablehlo`: a folder
    with the whole computation, waveforms to embeddings, for cpu, cuda and tpu."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="OUT")]
    """The file to write; for `stablehlo` the folder."""
    family: Annotated[
        str | None, tyro.conf.arg(metavar="FAMILY", help_behavior_hint="(default: the source's, else 3dspeaker)")
    ] = None
    """Whose layout `torch` and `safetensors` write."""
    force: Flag = False
    """Replace an existing output."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the output whole, or nothing."""
        from ecapa_jax import api

        path = local_path(self.out)
        bundle = api.resolve(self.bundle)
        result = self._stablehlo(bundle, path) if self.to == "stablehlo" else self._tensors(bundle, path)
        text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result.items())
        self.output.result({"out": str(path), "to": self.to, **result}, f"{path}: {text}")

    def _tensors(self, bundle: Path, path: Path) -> dict[str, Any]:
        from ecapa_jax.convert.export import source_tensors, write_safetensors, write_torch
        from ecapa_jax.files.atomic import write_whole

        before = self._check_free(path, replaceable=path.is_file())
        source = source_tensors(bundle, self.family)
        write = write_torch if self.to == "torch" else write_safetensors
        write_whole(path, lambda to: write(to, source), over=before)
        layout = "the source's" if source.as_source else "the family's, a model that is not from there"
        return {"family": source.family, "tensors": len(source.tensors), "layout": layout}

    def _stablehlo(self, bundle: Path, path: Path) -> dict[str, Any]:
        from ecapa_jax.bundle.bundle import load_bundle
        from ecapa_jax.convert.export_stablehlo import FILES, export_stablehlo, write_stablehlo
        from ecapa_jax.errors import ConfigError
        from ecapa_jax.files.atomic import replacing_folder

        if self.family is not None:
            raise ConfigError("--family is for --to torch and --to safetensors: StableHLO has no layout of tensors")
        before = self._check_free(path, replaceable=path.is_dir() and {entry.name for entry in path.iterdir()} <= FILES)
        artefact, metadata = export_stablehlo(load_bundle(bundle))
        with replacing_folder(path, over=before) as folder:
            write_stablehlo(folder, artefact, metadata)
        return {"bytes": len(artefact), "platforms": ", ".join(metadata["platforms"])}

    def _check_free(self, path: Path, *, replaceable: bool) -> Identity:
        """What stands at the path, which may be replaced."""
        from ecapa_jax.errors import EcapaError
        from ecapa_jax.files.atomic import identity

        found = identity(path)
        if os.path.lexists(path) and not (self.force and replaceable):
            remedy = " or pass --force" if replaceable else "; it will not be replaced"
            raise EcapaError(f"{path} exists: choose another output{remedy}")
        return found
