"""`ecapa-jax evaluate --trials FILE --audio-root DIR`, and `ecapa-jax evaluate --scores FILE`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ecapa_jax.cli.common import Flag, Model, ModelOptions, Output, OutputOptions, ShortOption, Vad, local_path
from ecapa_jax.config import ScoringName

if TYPE_CHECKING:
    import numpy as np

    from ecapa_jax.evaluation.measure import EvaluationSettings
    from ecapa_jax.evaluation.report import Report
    from ecapa_jax.evaluation.run import CohortRecordings, Scored
    from ecapa_jax.evaluation.trials import Trials

File = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
Folder = tyro.conf.arg(metavar="DIR", help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure a model on trial lists: EER, minDCF and other figures with intervals, a report, scores and plots."""

    trials: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILES...", help_behavior_hint="")] = ()
    """Trial lists: VoxCeleb's (`1 a b`), Kaldi's and VOiCES' (`a b target`), ESPnet's, NIST's, CSV or TSV with a
    header; also compressed by gzip."""
    audio_root: Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the working directory)")] = ""
    """Folder that the paths in the lists are relative to."""
    wav_scp: Annotated[str | None, File] = None
    """Kaldi's wav.scp, with one `id path` per line, if the lists and the cohort name recordings by their ids."""
    scores: Annotated[str | None, File] = None
    """File of scores, instead of lists and audio: one `enrol test label score` per line (the last two in any order), or
    CSV or TSV with these columns."""
    folder: Annotated[str | None, tyro.conf.arg(name="output", metavar="DIR", help_behavior_hint="")] = None
    """Directory to write scores, report and plots to."""
    force: Flag = False
    """Replace an earlier report in that directory."""
    preset: Annotated[
        Literal["voxceleb1-o", "voxceleb1-e", "voxceleb1-h"] | None, tyro.conf.arg(help_behavior_hint="")
    ] = None
    """Name of the list: its number of trials is checked, and the model's published figures are shown."""
    utt2spk: Annotated[str | None, File] = None
    """Speakers of the recordings, one `recording speaker` per line: intervals are then computed by speaker."""
    enrolment: Annotated[str | None, File] = None
    """Enrolment models, one `model recording recording ...` per line. The lists then name models on the enrolment side.
    A model is the mean of its recordings' embeddings, each scaled to unit length."""
    cohort: Annotated[str | None, File] = None
    """Recordings of other speakers, one `recording speaker` per line: the report then also has AS-norm."""
    cohort_root: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: --audio-root)")] = (
        None
    )
    """Folder that the paths in the cohort are relative to."""
    top_n: Annotated[int, tyro.conf.arg(metavar="N")] = 300
    """Number of most similar cohort speakers that normalise a score."""
    baseline: Annotated[str | None, File] = None
    """Scores of another system on the same trials, to compare with, in a file as for --scores."""
    p_target: Annotated[tuple[float, ...], tyro.conf.arg(metavar="P...")] = (0.01, 0.05)
    """Prior probabilities of a target trial, for minDCF."""
    c_miss: Annotated[float, tyro.conf.arg(metavar="C")] = 1.0
    """Cost of a false rejection."""
    c_fa: Annotated[float, tyro.conf.arg(metavar="C")] = 1.0
    """Cost of a false acceptance."""
    far: Annotated[tuple[float, ...], tyro.conf.arg(metavar="RATE...")] = (0.01, 0.001)
    """False acceptance rates, as fractions of 1, for which the report has the false rejection rate."""
    threshold: Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="(default: the model's)")] = None
    """Threshold at which the report has FAR and FRR of the model's scores."""
    llr: Flag = False
    """The scores are natural log-likelihood ratios: the report then has Cllr, and costs at the Bayes threshold."""
    by: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMNS...", help_behavior_hint="")] = ()
    """Report figures for groups of trials: by `duration`, or by columns of the list."""
    resamples: Annotated[int, tyro.conf.arg(metavar="N")] = 1000
    """Number of bootstrap samples for the confidence intervals; 0 turns the intervals off."""
    confidence: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.95
    """Confidence level of the intervals."""
    seed: int = 0
    """Random seed of the bootstrap."""
    cache: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in --output)")] = None
    """File that keeps the embeddings, so that the next run does not compute them again."""
    missing: Annotated[str | None, File] = None
    """File to write the names of all missing recordings to."""
    scoring: ScoringName = "publisher"
    """How to score: as the model's publisher does, or in another way."""
    short: ShortOption = "error"
    vad: Vad = False
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Prints the report; writes files where asked."""
        from ecapa_jax.errors import EcapaError

        if bool(self.trials) == bool(self.scores):
            raise EcapaError(
                "give trial lists or a scores file: evaluate --trials FILE --audio-root DIR, or --scores FILE"
            )
        with contextlib.ExitStack() as stack:
            self._evaluate(stack)

    def _evaluate(self, stack: contextlib.ExitStack) -> None:
        from ecapa_jax.files.atomic import claimed

        settings = self._settings()
        lists = self._lists()
        folders = self._folders(lists)
        for folder in filter(None, folders):
            stack.enter_context(claimed(folder))
            self._check_free(folder)
        if self.scores is not None:
            scored = [self._from_file(lists[0])]
        else:
            scored, settings = self._from_audio(lists, settings)
        reports = [
            report
            for result, folder in zip(scored, folders, strict=True)
            for report in self._reports(result, settings, folder)
        ]
        from ecapa_jax.evaluation.report import markdown

        text = "\n\n".join(report.to_text() for report in reports)
        if len(reports) > 1:
            text += f"\n\n{markdown(reports)}"
        name = None if self.scores else self.model.name
        self.output.result({"model": name, "lists": [report.to_json() for report in reports]}, text)

    def _settings(self) -> EvaluationSettings:
        from ecapa_jax.evaluation.measure import EvaluationSettings
        from ecapa_jax.scoring.counts import Cost

        return EvaluationSettings(
            costs=tuple(Cost(p_target=p, c_miss=self.c_miss, c_fa=self.c_fa) for p in dict.fromkeys(self.p_target)),
            fars=tuple(dict.fromkeys(self.far)),
            threshold=self.threshold,
            llr=self.llr and self.scores is not None,
            resamples=self.resamples,
            confidence=self.confidence,
            seed=self.seed,
        )

    def _lists(self) -> list[Trials]:
        from ecapa_jax.errors import EcapaError
        from ecapa_jax.evaluation.presets import check_preset
        from ecapa_jax.evaluation.trials import read_speakers, read_trials, with_speakers

        lists = [read_trials(path) for path in self.trials or (self.scores or "",)]
        if self.utt2spk:
            lists = [with_speakers(trials, read_speakers(self.utt2spk), self.utt2spk) for trials in lists]
        for trials in lists:
            trials.known_labels.any()
            if self.preset:
                check_preset(self.preset, trials)
            if unknown := [name for name in self.by if name not in trials.columns and name != "duration"]:
                known = ", ".join(["duration", *trials.columns])
                raise EcapaError(f"{trials.path} has no column {unknown[0]} to break figures down by; it has: {known}")
        if self.scores and "duration" in self.by and "duration" not in lists[0].columns:
            raise EcapaError("a scores file has no durations: evaluate its list with audio, or give it such a column")
        return lists

    def _folders(self, lists: list[Trials]) -> list[Path | None]:
        """Where each list's files go: the output, or a folder a list below it."""
        from ecapa_jax.errors import EcapaError
        from ecapa_jax.evaluation.report import list_name

        if self.folder is None:
            return [None] * len(lists)
        output = local_path(self.folder)
        names = [list_name(trials.path) for trials in lists]
        if len(set(names)) < len(names):
            raise EcapaError(
                "two lists have the same name, so their results would have the same folder: evaluate one at a time"
            )
        folders = [output] if len(lists) == 1 else [output / name for name in names]
        for folder in folders:
            self._check_free(folder)
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EcapaError(f"{output} can't be made: {error.strerror or error}") from error
        return list(folders)

    def _check_free(self, folder: Path) -> None:
        from ecapa_jax.errors import EcapaError

        if (folder / "report.json").exists() and not self.force:
            raise EcapaError(f"{folder} holds a report: choose another output or pass --force")

    def _from_file(self, trials: Trials) -> Scored:
        import numpy as np

        from ecapa_jax.errors import EcapaError
        from ecapa_jax.evaluation.run import Scored

        if trials.scores is None:
            raise EcapaError(f"{trials.path} has no scores: a line is 'enrol test label score'")
        return Scored(trials, {Path(trials.path).name: trials.scores}, np.zeros(len(trials)), len(trials.names))

    def _from_audio(self, lists: list[Trials], settings: EvaluationSettings) -> tuple[list[Scored], EvaluationSettings]:
        from ecapa_jax.cli.progress import EvaluationProgress
        from ecapa_jax.evaluation.files import read_places
        from ecapa_jax.evaluation.run import score_lists
        from ecapa_jax.evaluation.trials import read_enrolment

        enrolment = read_enrolment(self.enrolment) if self.enrolment else None
        places = read_places(self.wav_scp) if self.wav_scp else None
        cohort = self._cohort()
        missing = local_path(self.missing) if self.missing else None
        encoder = self.model.load(self.scoring, quiet=self.output.quiet)
        if settings.threshold is None:
            settings = dataclasses.replace(settings, threshold=encoder.scorer.scoring.threshold)
        settings = dataclasses.replace(settings, llr=encoder.scorer.scoring.score_type == "llr")
        with EvaluationProgress(quiet=self.output.quiet) as progress:
            scored = score_lists(
                encoder,
                lists,
                self.audio_root or ".",
                self._cache_path(),
                enrolment=enrolment,
                cohort=cohort,
                short=self.short,
                vad=self.vad,
                missing_to=missing,
                places=places,
                progress=progress,
            )
        return scored, settings

    def _cohort(self) -> CohortRecordings | None:
        from ecapa_jax.evaluation.run import CohortRecordings
        from ecapa_jax.evaluation.trials import read_speakers

        if self.cohort is None:
            return None
        root = Path(self.cohort_root if self.cohort_root is not None else self.audio_root or ".")
        return CohortRecordings(speakers=read_speakers(self.cohort), root=root, top_n=self.top_n)

    def _cache_path(self) -> Path:
        from ecapa_jax.cli.bundle_options import cache_path

        if self.cache is None and self.folder is not None:
            return Path(self.folder) / "embeddings.sqlite"
        return cache_path(self.cache)

    def _reports(self, scored: Scored, settings: EvaluationSettings, folder: Path | None) -> list[Report]:
        from ecapa_jax.evaluation.report import write_scores
        from ecapa_jax.files.atomic import write_whole

        reports = []
        first = next(iter(scored.scores))
        for system, scores in scored.scores.items():
            own = settings if system == first else dataclasses.replace(settings, threshold=None, llr=False)
            reports.append(self._report(scored, system, scores, own))
            if folder is not None and self.scores is None:
                target = folder / ("scores.tsv" if system == "plain" else f"scores_{system}.tsv")
                write_whole(target, functools.partial(write_scores, trials=scored.trials, scores=scores))
        if folder is not None:
            self._write(folder, scored, settings, reports)
        return reports

    def _report(self, scored: Scored, system: str, scores: np.ndarray, settings: EvaluationSettings) -> Report:
        from ecapa_jax.evaluation.measure import breakdown, compare, duration_groups, measure
        from ecapa_jax.evaluation.report import Report

        trials = scored.trials
        figures, notes = measure(scores, trials, settings)
        columns = {
            name: trials.columns[name] if name in trials.columns else duration_groups(scored.seconds)
            for name in self.by
        }
        against = {} if self.baseline is None else compare(scores, self._baseline_of(trials), trials, settings)
        return Report(
            trials=trials.path,
            system=system,
            n_trials=len(trials),
            n_targets=int(trials.known_labels.sum()),
            n_names=len(trials.names),
            n_speakers=None if trials.speakers is None else len(set(trials.speakers)),
            figures=figures,
            groups=breakdown(scores, trials.known_labels, columns, settings.costs[0]),
            notes=notes,
            published=self._published(),
            against=against,
        )

    def _baseline_of(self, trials: Trials) -> np.ndarray:
        from ecapa_jax.evaluation.trials import match_scores, read_trials

        return match_scores(read_trials(self.baseline or ""), trials)

    def _published(self) -> dict[str, Any]:
        from ecapa_jax import api
        from ecapa_jax.evaluation.presets import PRESETS, published_figures

        if self.preset is None or self.scores is not None:
            return {}
        found = published_figures(PRESETS[self.preset], api.provenance(self.model.model))
        return found or {PRESETS[self.preset].title: "no figure in this model's card"}

    def _write(self, folder: Path, scored: Scored, settings: EvaluationSettings, reports: list[Report]) -> None:
        import json

        from ecapa_jax.errors import ScoringError
        from ecapa_jax.evaluation.plots import plot_all
        from ecapa_jax.files.atomic import write_whole

        name = os.path.basename(scored.trials.path)
        try:
            plot_all(folder, scored.scores, scored.trials.known_labels, name, settings.threshold, llr=settings.llr)
        except ScoringError as error:
            self.output.note(f"no plots: {error}")
        text = "\n\n".join(report.to_text() for report in reports) + "\n"
        write_whole(folder / "report.txt", lambda to: to.write_text(text, "utf-8"))
        document = json.dumps([report.to_json() for report in reports], indent=2) + "\n"
        write_whole(folder / "report.json", lambda to: to.write_text(document, "utf-8"))
