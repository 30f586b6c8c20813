"""Options shared by the verbs that change how a bundle scores: the trials to learn from, and the bundle to write."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ecapa_jax.cli.common import Flag, Model, Output, ShortOption, local_path

if TYPE_CHECKING:
    from ecapa_jax.encoder import SpeakerEncoder
    from ecapa_jax.evaluation.run import Scored
    from ecapa_jax.evaluation.trials import Trials
    from ecapa_jax.files.atomic import Identity
    from ecapa_jax.scoring.config import Cohort, Scoring
    from ecapa_jax.scoring.counts import Cost


@dataclasses.dataclass(frozen=True)
class TrialOptions:
    """The trials, and where their audio is."""

    trials: Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
    """Trial list with labels, as for `evaluate`."""
    audio_root: Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the working directory)")] = ""
    """Folder that the paths in the list are relative to."""
    wav_scp: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Kaldi's wav.scp, with one `id path` per line, if the list names recordings by their ids."""
    utt2spk: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Speakers of the recordings: a file with one `recording speaker` per line."""
    enrolment: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Enrolment models: a file with one `model recording recording ...` per line."""
    cache: Annotated[
        str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in the user's cache folder)")
    ] = None
    """File that keeps the embeddings, so that the next run does not compute them again."""
    short: ShortOption = "error"

    def read(self) -> Trials:
        """Reads the list, which must have labels."""
        from ecapa_jax.evaluation.trials import read_speakers, read_trials, with_speakers

        trials = read_trials(self.trials)
        trials.known_labels.any()
        return with_speakers(trials, read_speakers(self.utt2spk), self.utt2spk) if self.utt2spk else trials

    def score(self, encoder: SpeakerEncoder, trials: Trials, output: Output) -> Scored:
        """Scores the list with the model."""
        from ecapa_jax.cli.progress import EvaluationProgress
        from ecapa_jax.evaluation.files import read_places
        from ecapa_jax.evaluation.run import score_lists
        from ecapa_jax.evaluation.trials import read_enrolment

        enrolment = read_enrolment(self.enrolment) if self.enrolment else None
        with EvaluationProgress(quiet=output.quiet) as progress:
            return score_lists(
                encoder,
                [trials],
                self.audio_root or ".",
                cache_path(self.cache),
                enrolment=enrolment,
                places=read_places(self.wav_scp) if self.wav_scp else None,
                short=self.short,
                progress=progress,
            )[0]


@dataclasses.dataclass(frozen=True)
class Target:
    """The bundle to write."""

    out: Annotated[
        str | None, tyro.conf.arg(aliases=["-o"], metavar="BUNDLE", help_behavior_hint="(default: --model itself)")
    ] = None
    """The bundle to write. By default the new scoring is written into the model's own directory."""
    force: Flag = False
    """Replace an existing bundle. The old one is kept until the new one is complete."""

    def check(self, model: Model) -> tuple[Path, Identity]:
        """The directory to write, and what stands there, before any work is done for it.

        Raises:
          EcapaError: it can't be written, or the model is no bundle of the user's and no output is named.
        """
        from ecapa_jax import api
        from ecapa_jax.bundle.bundle import check_target
        from ecapa_jax.errors import EcapaError
        from ecapa_jax.files.atomic import identity

        api.check_name(model.model)
        if self.out is None and (model.model is None or not os.path.isdir(model.model)):
            packaged = model.model is None or model.model == api.DEFAULT
            which = "the packaged model" if packaged else f"{model.model}"
            raise EcapaError(f"{which} can't be changed: name the bundle to write with -o BUNDLE")
        path = local_path(self.out or model.model or "")
        before = identity(path)
        check_target(path, force=self.force or self.out is None)
        return path, before


TrialsOptions = Annotated[TrialOptions, tyro.conf.OmitArgPrefixes]
TargetOptions = Annotated[Target, tyro.conf.OmitArgPrefixes]


def cache_path(named: str | None) -> Path:
    """The embedding cache: as named, or in the user's cache folder."""
    from ecapa_jax.hub.cache import default_folder

    return local_path(named) if named is not None else default_folder() / "embeddings.sqlite"


def parse_cost(text: str) -> Cost:
    """`"0.01,1,1"`: p_target, c_miss, c_fa.

    Raises:
      EcapaError: it is not three numbers, or one is out of range.
    """
    from ecapa_jax.errors import EcapaError
    from ecapa_jax.scoring.counts import Cost

    try:
        p_target, c_miss, c_fa = map(float, text.split(","))
    except ValueError as error:
        raise EcapaError(f"--cost {text!r} must be p_target,c_miss,c_fa, such as 0.01,1,1") from error
    return Cost(p_target=p_target, c_miss=c_miss, c_fa=c_fa)


def write_scoring(
    model: Model,
    target: tuple[Path, Identity],
    scoring: Scoring,
    points: list[dict[str, Any]],
    cohort: Cohort | None = None,
) -> None:
    """Writes the model with this scoring to the target that `Target.check` allowed; a cohort replaces its own."""
    from ecapa_jax import api
    from ecapa_jax.bundle.bundle import load_scoring
    from ecapa_jax.bundle.update import update_scoring

    source = api.resolve(model.model)
    _, mean, own = load_scoring(source)
    update_scoring(
        source,
        target[0],
        scoring=scoring,
        operating_points=points,
        embedding_mean=mean,
        cohort=cohort or own,
        force=True,
        over=target[1],
    )
