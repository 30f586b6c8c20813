"""`ecapa-jax convert SOURCE -o BUNDLE`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from ecapa_jax.cli.common import Flag, Output, OutputOptions, local_path
from ecapa_jax.cli.published import list_published
from ecapa_jax.files.atomic import write_whole


@dataclasses.dataclass(frozen=True)
class Convert:
    """Turn a PyTorch ECAPA-TDNN checkpoint into a bundle; PyTorch is not needed.

    With -o WEIGHTS.safetensors it also converts silero_vad.onnx, from the silero-vad wheel, into weights of the speech
    detector, and pytorch_model.bin, from pyannote/segmentation-3.0, into weights of overlap detection.
    """

    source: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = None
    """The weight file, the directory it was published in, or an address: hf:ORG/NAME, modelscope:ORG/NAME (both with
    an optional @REVISION) or https://HOST/FILE."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"], metavar="BUNDLE", help_behavior_hint="")] = None
    """The bundle directory to write."""
    list: Flag = False
    """Print the published models that can be converted, with their addresses, and stop."""
    family: Annotated[
        str | None, tyro.conf.arg(metavar="FAMILY", help_behavior_hint="(default: recognised by the file names)")
    ] = None
    """The project that the checkpoint comes from. It is needed if the file names do not show it, as for 3dspeaker and
    speechbrain, whose tensors look alike. nemo-2.5 and espnet-2025 are for models of these releases or later."""
    dilations: Annotated[str | None, tyro.conf.arg(metavar="D,D,...", help_behavior_hint="(default: the family's)")] = (
        None
    )
    """Dilations of the SE-Res2 blocks, one for each block, such as 2,3,4. The tensors do not show them."""
    embedding_mean: Annotated[str | None, tyro.conf.arg(metavar="FILE.npy", help_behavior_hint="(default: none)")] = (
        None
    )
    """Mean embedding of a training set, to subtract before scoring (WeSpeaker's published figures do so)."""
    key: Annotated[
        str | None, tyro.conf.arg(metavar="KEY", help_behavior_hint="(default: recognised by the tensors)")
    ] = None
    """Path to the tensors in the checkpoint, if several of its dicts fit: keys joined by dots, as in ema.model."""
    verify: Flag = False
    """Compare every stage, from features to embedding, with the original PyTorch code if it is installed, else with
    packaged values."""
    force: Flag = False
    """Replace an existing bundle. The old one is kept until the new one is complete."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the bundle, or nothing."""
        if self.list:
            list_published(self.output)
            return
        from ecapa_jax.bundle.bundle import check_target, save_bundle
        from ecapa_jax.convert.readers.checkpoint import read_embedding_mean
        from ecapa_jax.convert.remote import convert_source
        from ecapa_jax.convert.segmentation import find_segmentation
        from ecapa_jax.convert.silero import holds_speech_detector
        from ecapa_jax.errors import EcapaError
        from ecapa_jax.files.atomic import identity

        if self.source is None or self.out is None:
            raise EcapaError("SOURCE and -o BUNDLE are needed; --list shows the published models and their addresses")
        path = local_path(self.out)
        if holds_speech_detector(self.source):
            self._convert_detector(self.source, path)
            return
        if network := find_segmentation(self.source):
            self._convert_segmentation(network, path)
            return
        before = identity(path)
        check_target(path, force=self.force)
        bundle = convert_source(
            self.source,
            family=self.family,
            dilations=parse_dilations(self.dilations),
            embedding_mean=None if self.embedding_mean is None else read_embedding_mean(self.embedding_mean),
            verify=self.verify,
            key=self.key,
            progress=not self.output.quiet,
        )
        save_bundle(bundle, path, force=self.force, over=before)
        parity = bundle.parity
        if wrapper := bundle.source.get("wrapper"):
            self.output.note(f"the tensors are those under {wrapper!r} in the checkpoint")
        threshold = bundle.scoring.threshold
        text = (
            f"{path}: {bundle.provenance['family']}, {parity['parameters']:,} parameters\n"
            f"{parity['tensors_bit_identical']} of {parity['tensors']} tensors come back bit for bit, "
            f"{parity['tensors_not_used']} not used in inference\n"
            f"threshold: {'none published; pass --threshold to verify' if threshold is None else threshold}"
        )
        self.output.result({"out": str(path), "family": bundle.provenance["family"], **parity}, text)

    def _convert_detector(self, source: str, path: Path) -> None:
        from ecapa_jax.convert.silero import LICENCE, read_silero

        self._check_weights_file(path)
        self._write_weights(read_silero(source), source, path, LICENCE, "silero-vad", "silero-vad at 16 kHz")

    def _convert_segmentation(self, source: Path, path: Path) -> None:
        from ecapa_jax.convert.segmentation import LICENCE, read_segmentation

        self._check_weights_file(path)
        text = "pyannote's segmentation-3.0"
        self._write_weights(read_segmentation(source), source, path, LICENCE, "segmentation-3.0", text)

    def _check_weights_file(self, path: Path) -> None:
        from ecapa_jax.errors import EcapaError

        if path.suffix != ".safetensors":
            raise EcapaError(f"{path} must end in .safetensors: the weights of a detector are one file")
        if os.path.lexists(path) and (os.path.isdir(path) or not self.force):
            remedy = "choose another output" + ("" if os.path.isdir(path) else " or pass --force")
            raise EcapaError(f"{path} exists: {remedy}")

    def _write_weights(
        self, weights: Mapping[str, Any], source: str | Path, path: Path, licence: str, family: str, text: str
    ) -> None:
        from ecapa_jax.convert.silero import write_weights

        write_whole(path, lambda to: write_weights(weights, source, to, licence))
        parameters = sum(array.size for array in weights.values())
        self.output.result(
            {"out": str(path), "family": family, "parameters": parameters}, f"{path}: {text}, {parameters:,} parameters"
        )


def parse_dilations(text: str | None) -> tuple[int, ...] | None:
    """Converts `"2,3,4"` to integers.

    Raises:
      ConfigError: it is not a list of positive integers.
    """
    from ecapa_jax.errors import ConfigError

    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--dilations {text!r} must be positive integers joined by commas, such as 2,3,4")
    return tuple(int(part) for part in parts)
