"""`ecapa-jax embed FILES... -o OUT.npz`."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import tyro

from ecapa_jax.cli.common import Flag, Model, ModelOptions, Output, OutputOptions, Short, local_path, replace_whole


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embed recordings into one .npz: `names` [n] and `embeddings` [n, embedding_dim]."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILES...", help_behavior_hint="")]
    """Recordings: files or http(s) URLs. If one can't be read, nothing is written."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="OUT.npz")]
    """The .npz to write."""
    force: Flag = False
    """Replace an existing output."""
    short: Short = "error"
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the embeddings, or nothing."""
        import numpy as np

        from ecapa_jax.errors import EcapaError

        if not self.files:
            raise EcapaError("no recordings given: ecapa-jax embed FILES... -o OUT.npz")
        path = local_path(self.out)
        if path.suffix != ".npz":
            raise EcapaError(f"{path} must end in .npz")
        if os.path.lexists(path) and (os.path.isdir(path) or not self.force):
            remedy = "choose another output" + ("" if os.path.isdir(path) else " or pass --force")
            raise EcapaError(f"{path} exists: {remedy}")
        embeddings = self.model.load().embed(self.files, short=self.short)
        replace_whole(path, lambda to: np.savez(to, names=np.array(self.files), embeddings=embeddings))
        self.output.result(
            {"out": str(path), "n": len(embeddings), "embedding_dim": embeddings.shape[1], "model": self.model.name},
            f"{path}: {len(embeddings)} embeddings of {embeddings.shape[1]}",
        )
