"""`ecapa-jax verify A B`."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from typing import Annotated

import tyro

from ecapa_jax.cli.common import (
    ChannelOption,
    Model,
    ModelOptions,
    Output,
    OutputOptions,
    ShortOption,
    Vad,
    check_standard_input,
    parse_channel,
)
from ecapa_jax.config import ScoringName

SERIOUS_USE = (
    "the packaged model is small: for serious use choose a published one, such as "
    "--model hf:speechbrain/spkrec-ecapa-voxceleb (ecapa-jax convert --list shows all)"
)


@dataclasses.dataclass(frozen=True)
class Verify:
    """Score two recordings: one speaker or two?"""

    a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]
    """The first recording: a file, an http(s) URL, or - for standard input."""
    b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]
    """The second recording."""
    threshold: Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="(default: the model's)")] = None
    """Score at or above which the answer is yes; from -1 to 1 for a cosine."""
    scoring: ScoringName = "publisher"
    """How to score: as the model's publisher does, or in another way."""
    short: ShortOption = "error"
    vad: Vad = False
    channel: ChannelOption = None
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Prints the score and the decision."""
        from ecapa_jax.audio.recordings import SilenceWarning
        from ecapa_jax.errors import AudioError

        channel = parse_channel(self.channel)
        check_standard_input(self.a, self.b)
        encoder = self.model.load(self.scoring, quiet=self.output.quiet)
        with warnings.catch_warnings():
            warnings.simplefilter("error", SilenceWarning)
            try:
                answer = encoder.verify(self.a, self.b, self.threshold, short=self.short, vad=self.vad, channel=channel)
            except SilenceWarning as silence:
                raise AudioError(f"{silence}; give a recording of speech") from silence
        lines = [f"score         {answer.score:.4f}   ({encoder.scorer.scale})"]
        if answer.threshold is None:
            self.output.note("this model has no threshold: pass --threshold to get a decision")
        else:
            lines += [
                f"threshold     {answer.threshold:.4f}",
                f"same speaker  {'yes' if answer.same_speaker else 'no'}",
            ]
        if self.model.name == "default" and is_terminal():
            self.output.note(f"ecapa-jax: {SERIOUS_USE}")
        self.output.result(
            {"a": self.a, "b": self.b, **dataclasses.asdict(answer), "model": self.model.name}, "\n".join(lines)
        )


def is_terminal() -> bool:
    """Returns whether stderr is a terminal."""
    return sys.stderr.isatty()
