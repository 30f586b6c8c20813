"""`ecapa-jax threshold --trials FILE --audio-root DIR --model BUNDLE (--eer | --far X | --cost P,CM,CF)`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ecapa_jax.cli.bundle_options import Target, TargetOptions, TrialsOptions, parse_cost, write_scoring
from ecapa_jax.cli.common import Flag, Model, ModelOptions, Output, OutputOptions, count_of

if TYPE_CHECKING:
    from ecapa_jax.evaluation.operating import ThresholdRule


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Choose a threshold from trials and write it to the bundle, with its error rates."""

    list: TrialsOptions
    eer: Flag = False
    """Choose the threshold at which both error rates are closest."""
    far: Annotated[float | None, tyro.conf.arg(metavar="RATE", help_behavior_hint="")] = None
    """Choose the lowest threshold with at most this false acceptance rate, a fraction of 1."""
    cost: Annotated[str | None, tyro.conf.arg(metavar="P,CM,CF", help_behavior_hint="")] = None
    """Choose the threshold with the lowest detection cost for this prior, cost of a false rejection and cost of a false
    acceptance, as in 0.01,1,1."""
    target: TargetOptions = Target()
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the bundle, or nothing. If the list has scores, they are used; else the model scores the audio."""
        from ecapa_jax import api
        from ecapa_jax.bundle.bundle import load_scoring, read_operating_points
        from ecapa_jax.evaluation.operating import choose_threshold, operating_point

        rule = self._rule()
        target = self.target.check(self.model)
        trials = self.list.read()
        source = api.resolve(self.model.model, progress=not self.output.quiet)
        scoring, *_ = load_scoring(source)
        scores = trials.scores
        if scores is None:
            encoder = self.model.load(quiet=self.output.quiet)
            scores = next(iter(self.list.score(encoder, trials, self.output).scores.values()))
        value = choose_threshold(scores, trials.known_labels, rule)
        name = Path(trials.path).name.removesuffix(".gz").removesuffix(".txt")
        llr = scoring.score_type == "llr"
        point = operating_point(value, scores, trials.known_labels, trials=name, llr=llr) | {"chosen_by": str(rule)}
        earlier = read_operating_points(source)
        others = [other for other in earlier if (other["threshold"], other["trials"]) != (value, name)]
        write_scoring(self.model, target, dataclasses.replace(scoring, threshold=value), [point, *others])
        self.output.result(
            {"out": str(target[0]), "score_type": scoring.score_type, **point},
            f"{target[0]}: threshold {value:.4f} by {rule}\n"
            f"on {name}, {count_of(point['n_trials'], 'trial')}: FAR {point['far']:.2%}, FRR {point['frr']:.2%}",
        )

    def _rule(self) -> ThresholdRule:
        from ecapa_jax.evaluation.operating import ThresholdRule

        return ThresholdRule(eer=self.eer, far=self.far, cost=None if self.cost is None else parse_cost(self.cost))
