"""`ecapa-jax views CONFIG -o DIR --number N`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ecapa_jax.cli.common import Output, OutputOptions, count_of


@dataclasses.dataclass(frozen=True)
class WriteViews:
    """Write augmented views of the training speech as sound files, for a teacher that is not an ecapa-jax bundle.

    Run the teacher on the files, and write a Parquet table with the columns id, variant and embedding, as
    examples/teacher_table.py does. Then train on the views: data.manifest=DIR/manifest.parquet,
    teacher.embeddings=TABLE. If the run
    is interrupted, the same command continues it.
    """

    config: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """TOML file, or the name of a packaged recipe. Its sections data and augment say how to make the views."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """Folder to write manifest.parquet to, and FLAC files in audio/."""
    number: Annotated[int, tyro.conf.arg(aliases=["-n"], metavar="N")]
    """Number of views to write, rounded up to whole batches."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="SECTION.KEY=VALUE", help_behavior_hint="")
    ] = ()
    """Change a value of the configuration, as in --set data.manifest=M. May be given several times."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the views."""
        from ecapa_jax.cli.progress import CountProgress
        from ecapa_jax.train.settings import load_config
        from ecapa_jax.train.views import write_views

        config = load_config(self.config, self.set)
        with CountProgress("views", quiet=self.output.quiet) as progress:
            made = write_views(config, Path(self.out), self.number, progress=progress.update)
        self.output.result(
            {**dataclasses.asdict(made), "manifest": str(made.manifest)},
            f"{made.manifest}: {count_of(made.views, 'view')} of {count_of(made.utterances, 'utterance')}, "
            f"{made.hours:.2f} hours",
        )
