"""`ecapa-jax convert SOURCE -o BUNDLE`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from ecapa_jax.cli.common import Output, OutputOptions, local_path


@dataclasses.dataclass(frozen=True)
class Convert:
    """Turn a PyTorch ECAPA-TDNN checkpoint into a bundle; PyTorch is not needed."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """The weight file, or the directory it was published in."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="BUNDLE")]
    """The bundle directory to write."""
    family: Annotated[str | None, tyro.conf.arg(metavar="F")] = None
    """3dspeaker or speechbrain, where file names do not tell."""
    dilations: Annotated[str | None, tyro.conf.arg(metavar="D,D,...")] = None
    """Dilations of the SE-Res2 blocks, such as 2,3,4, where they are not the family's."""
    force: bool = False
    """Replace an existing bundle."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the bundle, or nothing."""
        from ecapa_jax.convert.run import convert
        from ecapa_jax.errors import BundleError
        from ecapa_jax.io.bundle import save_bundle

        path = local_path(self.out)
        if path.exists() and not self.force:
            raise BundleError(f"{path} exists: choose another output or pass --force")
        bundle = convert(self.source, family=self.family, dilations=parse_dilations(self.dilations))
        save_bundle(bundle, path, force=self.force)
        parity = bundle.parity
        threshold = bundle.scoring.threshold
        text = (
            f"{path}: {bundle.provenance['family']}, {parity['parameters']:,} parameters\n"
            f"{parity['tensors_bit_identical']} of {parity['tensors']} tensors come back bit for bit, "
            f"{parity['tensors_not_used']} not used in inference\n"
            f"threshold: {'none published; pass --threshold to verify' if threshold is None else threshold}"
        )
        self.output.result({"out": str(path), "family": bundle.provenance["family"], **parity}, text)


def parse_dilations(text: str | None) -> tuple[int, ...] | None:
    """`"2,3,4"` to integers.

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
