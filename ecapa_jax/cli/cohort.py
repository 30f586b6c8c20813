"""`ecapa-jax cohort SPEAKERS --model BUNDLE`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from ecapa_jax.cli.bundle_options import Target, TargetOptions, cache_path, write_scoring
from ecapa_jax.cli.common import Flag, Model, ModelOptions, Output, OutputOptions, ShortOption


@dataclasses.dataclass(frozen=True)
class MakeCohort:
    """Embed speakers that are in no trial, and normalise the bundle's scores by them (AS-norm)."""

    speakers: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SPEAKERS")]
    """A folder with one folder of recordings a speaker, or a file, `recording speaker` a line."""
    audio_root: Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the working directory)")] = ""
    """What the file's paths are relative to."""
    top_n: Annotated[int, tyro.conf.arg(metavar="N")] = 300
    """Most alike cohort rows that a score is normalised by; 0: all of them, which is plain S-norm."""
    utterances: Flag = False
    """One cohort row a recording, not one a speaker (the mean of the speaker's embeddings)."""
    cache: Annotated[
        str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in the user's cache folder)")
    ] = None
    """Where embeddings are kept, so that another run need not compute them."""
    short: ShortOption = "error"
    target: TargetOptions = Target()
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the bundle, or nothing; thresholds and calibration of the scores as they were are dropped."""
        from ecapa_jax import api
        from ecapa_jax.bundle.bundle import load_scoring
        from ecapa_jax.cli.progress import EvaluationProgress
        from ecapa_jax.errors import EcapaError
        from ecapa_jax.evaluation.cohorts import embed_cohort, read_cohort
        from ecapa_jax.scoring.config import Scoring

        if self.top_n < 0 or self.top_n == 1:
            raise EcapaError(f"--top-n {self.top_n} must be at least 2, or 0 for the whole cohort")
        target = self.target.check(self.model)
        speakers = read_cohort(self.speakers, self.audio_root or ".")
        encoder = self.model.load("cosine", quiet=self.output.quiet)
        with EvaluationProgress(quiet=self.output.quiet) as progress:
            cohort = embed_cohort(
                encoder,
                speakers,
                cache_path(self.cache),
                by_speaker=not self.utterances,
                short=self.short,
                progress=progress,
            )
        before, *_ = load_scoring(api.resolve(self.model.model))
        scoring = Scoring(subtract_mean=before.subtract_mean, normalisation="s_norm", top_n=self.top_n or None)
        write_scoring(self.model, target, scoring, [], cohort)
        rows = len(cohort.speakers)
        if self.top_n > rows:
            self.output.note(
                f"ecapa-jax: warning: the cohort has {rows} rows and the top {self.top_n} are asked for: scores are "
                f"normalised by all of it, which is plain S-norm; give more speakers, or --top-n below {rows}"
            )
        self.output.note("scores have another scale now: choose a threshold with ecapa-jax threshold")
        self.output.result(
            {"out": str(target[0]), "rows": rows, "speakers": len(set(cohort.speakers)), "top_n": scoring.top_n},
            f"{target[0]}: cohort of {rows} rows, {len(set(cohort.speakers))} speakers; "
            f"{f'AS-norm with the top {self.top_n}' if self.top_n else 'S-norm'}",
        )
