"""`ecapa-jax export BUNDLE --to torch|safetensors|stablehlo|onnx -o OUT`."""

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
    """Export a bundle for other programs: the original PyTorch code, or programs that run StableHLO or ONNX."""

    bundle: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="BUNDLE")]
    """A bundle directory written by `ecapa-jax convert`; `default` is the packaged model."""
    to: Literal["torch", "safetensors", "stablehlo", "onnx"]
    """`torch` writes the PyTorch file that the bundle came from, tensor by tensor. `safetensors` writes the same
    tensors. `stablehlo` writes a folder with the whole computation, from waveforms to embeddings, for cpu, cuda and
    tpu. `onnx` writes the computation into one file, for ONNX Runtime, OpenVINO, sherpa-onnx, browsers and phones."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="OUT")]
    """The file to write, or the folder for `stablehlo`."""
    family: Annotated[
        str | None, tyro.conf.arg(metavar="FAMILY", help_behavior_hint="(default: the source's, else 3dspeaker)")
    ] = None
    """Project whose tensor names and layout `torch` and `safetensors` write."""
    takes: Annotated[
        Literal["waveform", "features", "sherpa"], tyro.conf.arg(name="input", help_behavior_hint="(default: waveform)")
    ] = "waveform"
    """Input of an ONNX model: waveforms and lengths, features of the model's own front end, or the features that
    sherpa-onnx computes."""
    quantize: Annotated[Literal["int8", "float16"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Make an ONNX model smaller, by int8 convolutions or by float16 weights."""
    calibration: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of speech to calibrate int8 on. By default it is the packaged demo speech."""
    trials: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Trial list on which to compare a quantised ONNX model with float32. The file's card holds the result."""
    audio_root: Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the working directory)")] = ""
    """Folder that the paths in the list are relative to."""
    force: Flag = False
    """Replace an existing output."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the complete output, or writes nothing."""
        from ecapa_jax import api

        path = local_path(self.out)
        bundle = api.resolve(self.bundle)
        write = {"stablehlo": self._write_stablehlo, "onnx": self._write_onnx}.get(self.to, self._write_tensors)
        self._check_options()
        result = write(bundle, path)
        text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result.items())
        self.output.result({"out": str(path), "to": self.to, **result}, f"{path}: {text}")

    def _write_tensors(self, bundle: Path, path: Path) -> dict[str, Any]:
        from ecapa_jax.convert.export import source_tensors, write_safetensors, write_torch
        from ecapa_jax.files.atomic import write_whole

        before = self._check_free(path, replaceable=path.is_file())
        source = source_tensors(bundle, self.family)
        write = write_torch if self.to == "torch" else write_safetensors
        write_whole(path, lambda to: write(to, source), over=before)
        layout = "same as the source" if source.as_source else "of the family, which is not the source of the model"
        return {"family": source.family, "tensors": len(source.tensors), "layout": layout}

    def _write_stablehlo(self, bundle: Path, path: Path) -> dict[str, Any]:
        from ecapa_jax.bundle.bundle import load_bundle
        from ecapa_jax.convert.export_stablehlo import FILES, export_stablehlo, write_stablehlo
        from ecapa_jax.errors import ConfigError
        from ecapa_jax.files.atomic import replacing_folder

        if self.family is not None:
            raise ConfigError("--family is for --to torch and --to safetensors: StableHLO has no such layout")
        before = self._check_free(path, replaceable=path.is_dir() and {entry.name for entry in path.iterdir()} <= FILES)
        artefact, metadata = export_stablehlo(load_bundle(bundle))
        with replacing_folder(path, over=before) as folder:
            write_stablehlo(folder, artefact, metadata)
        return {"bytes": len(artefact), "platforms": ", ".join(metadata["platforms"])}

    def _write_onnx(self, bundle: Path, path: Path) -> dict[str, Any]:
        from ecapa_jax.bundle.bundle import load_bundle
        from ecapa_jax.cli.export_onnx import OnnxOptions, make_onnx
        from ecapa_jax.errors import ConfigError
        from ecapa_jax.files.atomic import write_whole

        if self.family is not None:
            raise ConfigError("--family is for --to torch and --to safetensors: an ONNX file has no such layout")
        if path.suffix != ".onnx":
            raise ConfigError(f"{path} must end in .onnx")
        before = self._check_free(path, replaceable=path.is_file())
        options = OnnxOptions(
            takes=self.takes,
            quantize=self.quantize,
            calibration=self.calibration,
            trials=self.trials,
            audio_root=self.audio_root,
        )
        options.check()
        model, about = make_onnx(load_bundle(bundle), options)
        content = model.SerializeToString()
        write_whole(path, lambda to: to.write_bytes(content), over=before)
        return {"bytes": len(content), **about}

    def _check_options(self) -> None:
        """Raises an error if an option of ONNX was given for another output."""
        from ecapa_jax.errors import ConfigError

        given = {
            "--input": self.takes != "waveform",
            "--quantize": self.quantize,
            "--calibration": self.calibration,
            "--trials": self.trials,
            "--audio-root": self.audio_root,
        }
        if self.to != "onnx" and (wrong := [name for name, value in given.items() if value]):
            raise ConfigError(f"{wrong[0]} is for --to onnx: leave it out for --to {self.to}")

    def _check_free(self, path: Path, *, replaceable: bool) -> Identity:
        """Identifies the existing output; raises an error if it must not be replaced."""
        from ecapa_jax.errors import EcapaError
        from ecapa_jax.files.atomic import identity

        found = identity(path)
        if os.path.lexists(path) and not (self.force and replaceable):
            remedy = " or pass --force" if replaceable else "; it will not be replaced"
            raise EcapaError(f"{path} exists: choose another output{remedy}")
        return found
