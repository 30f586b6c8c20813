"""`ecapa-jax prepare SOURCE -o DIR`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ecapa_jax.cli.common import Flag, Output, OutputOptions, count_of


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Check a collection of speech and write the manifest that training reads.

    The source is a tree with one folder for each speaker (as in VoxCeleb), a Kaldi data folder (wav.scp, utt2spk,
    optionally segments), a CSV or TSV with the columns of 3D-Speaker or SpeechBrain, or the JSON lines of NeMo or
    WeSpeaker (raw.list). Recordings that are broken, silent, too short or duplicates are listed in problems.csv.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Folder, table or file of JSON lines."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """Folder to write manifest.parquet and problems.csv to, and the shards of --shards."""
    layout: Literal["auto", "folders", "kaldi", "csv"] = "auto"
    """Layout of the source."""
    rate: int = 16000
    """Sample rate of the model that will be trained, in Hz."""
    min_seconds: float = 0.5
    """Shorter utterances are left out."""
    shards: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Also write the audio, as FLAC, into ArrayRecord files of N utterances each; 0 writes none."""
    vad: Flag = False
    """Write only the speech into the ArrayRecord files, without the silence between. Needs --shards."""
    threads: int = 8
    """Number of recordings that are decoded at the same time."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the manifest."""
        from ecapa_jax.cli.progress import CountProgress
        from ecapa_jax.train.data.prepare import prepare

        with CountProgress("recordings", quiet=self.output.quiet) as progress:
            made = prepare(
                Path(self.source),
                Path(self.out),
                layout=self.layout,
                rate=self.rate,
                min_seconds=self.min_seconds,
                shard_utterances=self.shards,
                vad=self.vad,
                threads=self.threads,
                progress=progress.update,
            )
        if made.lonely:
            self.output.note(f"ecapa-jax: {count_of(made.lonely, 'speaker')} with one utterance only")
        problems = ", ".join(f"{count} {reason}" for reason, count in made.problems.items()) or "none"
        self.output.result(
            {**dataclasses.asdict(made), "manifest": str(made.manifest)},
            f"{made.manifest}: {count_of(made.utterances, 'utterance')} of {count_of(made.speakers, 'speaker')}, "
            f"{made.hours:.2f} hours; "
            f"left out: {problems}",
        )
