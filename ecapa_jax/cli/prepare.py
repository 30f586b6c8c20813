"""`ecapa-jax prepare SOURCE -o DIR`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ecapa_jax.cli.common import Flag, Output, OutputOptions


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Check a collection of speech and write the manifest that training reads.

    Takes folders of speakers (VoxCeleb's tree is one), a Kaldi data folder (wav.scp, utt2spk, perhaps
    segments), a CSV or TSV (3D-Speaker's or SpeechBrain's columns) or JSON lines (NeMo's, WeSpeaker's
    raw.list). What is broken, silent, too short or there twice is listed in problems.csv.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Folder, table or JSON lines."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """Folder to make: manifest.parquet, problems.csv, and shards if asked for."""
    layout: Literal["auto", "folders", "kaldi", "csv"] = "auto"
    """Of the source."""
    rate: int = 16000
    """Sample rate of the model that will be trained, Hz."""
    min_seconds: float = 0.5
    """Shortest utterance kept."""
    shards: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Also write the audio into ArrayRecord files of N utterances each, as FLAC; 0 writes none."""
    vad: Flag = False
    """Cut silence away: the ArrayRecord files hold only what somebody says. Needs --shards."""
    threads: int = 8
    """Recordings decoded at a time."""
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
            self.output.note(f"ecapa-jax: {made.lonely} speakers have one utterance only")
        problems = ", ".join(f"{count} {reason}" for reason, count in made.problems.items()) or "none"
        self.output.result(
            {**dataclasses.asdict(made), "manifest": str(made.manifest)},
            f"{made.manifest}: {made.utterances} utterances of {made.speakers} speakers, {made.hours:.2f} hours; "
            f"left out: {problems}",
        )
