"""`ecapa-jax cohort SPEAKERS --model BUNDLE`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from ecapa_jax.cli.bundle_options import Target, TargetOptions, cache_path, write_scoring
from ecapa_jax.cli.common import Flag, Model, ModelOptions, Output, OutputOptions, ShortOption, count_of


@dataclasses.dataclass(frozen=True)
class MakeCohort:
    """Embed a cohort of speakers who are in no trial, and normalise the bundle's scores by it (AS-norm)."""

    speakers: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SPEAKERS")]
    """A folder that has one folder of recordings for each speaker, or a file with lines `recording speaker`."""
    audio_root: Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the working directory)")] = ""
    """Folder that the paths in the file are relative to."""
    top_n: Annotated[int, tyro.conf.arg(metavar="N")] = 300
    """Number of most similar cohort rows that normalise a score; 0 uses all rows, which is plain S-norm."""
    utterances: Flag = False
    """Make one cohort row for each recording. By default there is one for each speaker, the mean of the embeddings."""
    cache: Annotated[
        str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in the user's cache folder)")
    ] = None
    """File that keeps the embeddings, so that the next run does not compute them again."""
    short: ShortOption = "error"
    target: TargetOptions = Target()
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the bundle, or nothing. Drops the thresholds and the calibration, which belong to the old scores."""
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
                f"ecapa-jax: warning: the cohort has {rows} rows, fewer than --top-n {self.top_n}: all of them "
                f"normalise each score, which is plain S-norm; give more speakers, or --top-n below {rows}"
            )
        self.output.note("the scale of the scores has changed: choose a threshold with ecapa-jax threshold")
        self.output.result(
            {"out": str(target[0]), "rows": rows, "speakers": len(set(cohort.speakers)), "top_n": scoring.top_n},
            f"{target[0]}: cohort of {count_of(rows, 'row')}, {count_of(len(set(cohort.speakers)), 'speaker')}; "
            f"{f'AS-norm with the top {self.top_n}' if self.top_n else 'S-norm'}",
        )
