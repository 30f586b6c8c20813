"""`ecapa-jax calibrate --trials FILE --audio-root DIR --model BUNDLE`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ecapa_jax.cli.bundle_options import Target, TargetOptions, TrialsOptions, parse_cost, write_scoring
from ecapa_jax.cli.common import Model, ModelOptions, Output, OutputOptions


@dataclasses.dataclass(frozen=True)
class Calibrate:
    """Learn from trials how to turn scores into log-likelihood ratios, and write the calibration to the bundle."""

    list: TrialsOptions
    measures: Annotated[
        tuple[Literal["duration", "magnitude"], ...], tyro.conf.arg(help_behavior_hint="(default: none)")
    ] = ()
    """Quantities that the calibration uses beside the score: length of the recordings, length of the embeddings."""
    cost: Annotated[str, tyro.conf.arg(metavar="P,CM,CF", help_behavior_hint="(default: 0.5,1,1)")] = "0.5,1,1"
    """The calibration is fitted for these decisions: prior, cost of a rejection and of an acceptance."""
    ridge: Annotated[float, tyro.conf.arg(metavar="X")] = 0.0
    """Strength of the pull of the weights towards 0; needed if the scores separate the trials without an error."""
    target: TargetOptions = Target()
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the bundle, or nothing."""
        from ecapa_jax.evaluation.operating import operating_point
        from ecapa_jax.evaluation.scores import quality_columns
        from ecapa_jax.scoring.calibration import calibrate, fit
        from ecapa_jax.scoring.scorer import Scorer

        cost = parse_cost(self.cost)
        target = self.target.check(self.model)
        trials = self.list.read()
        labels = trials.known_labels
        encoder = self.model.load(quiet=self.output.quiet)
        own = encoder.scorer
        before = dataclasses.replace(own.scoring, calibration=None, threshold=None, score_map="cosine")
        encoder.scorer = Scorer(before, own.embedding_mean, own.cohort)
        scored = self.list.score(encoder, trials, self.output)
        scores = next(iter(scored.scores.values()))
        columns = quality_columns(self.measures, scored.sides)
        calibration = fit(scores, labels, columns, measures=self.measures, cost=cost, ridge=self.ridge)
        ratios = calibrate(calibration, scores.astype("float32"), columns)
        scoring = dataclasses.replace(before, calibration=calibration, threshold=cost.bayes_threshold)
        name = Path(trials.path).name.removesuffix(".gz").removesuffix(".txt")
        point = operating_point(cost.bayes_threshold, ratios, labels, trials=name, llr=True)
        point["chosen_by"] = f"calibration on these trials, Bayes threshold at {self.cost}"
        write_scoring(self.model, target, scoring, [point])
        self.output.result(
            {"out": str(target[0]), **dataclasses.asdict(calibration), **point},
            f"{target[0]}: log-likelihood ratio = {calibration.offset:.3f} + {calibration.weight:.3f} score"
            f"{' + quality' if self.measures else ''}\n"
            f"on {name}, {point['n_trials']} trials: Cllr {point['cllr']:.3f} (least {point['min_cllr']:.3f}); "
            f"at {cost.bayes_threshold:.3f} FAR {point['far']:.2%}, FRR {point['frr']:.2%}",
        )
