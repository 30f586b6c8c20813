"""Measures the time of metrics for a long list, and compares metrics of existing scores with other toolkits.

    python benchmarks/metrics.py [--trials 600000] [--resamples 1000]
    python benchmarks/metrics.py --scores FILE...       files from `ecapa-jax evaluate --output`

The second form needs scikit-learn, speakerlab and speechbrain with torch (make peers installs them).
"""

from __future__ import annotations

import argparse
import sys
import time
import types
from pathlib import Path

import numpy as np

from ecapa_jax.evaluation.trials import read_trials
from ecapa_jax.scoring import llr, metrics
from ecapa_jax.scoring.bootstrap import Units, resample
from ecapa_jax.scoring.counts import Cost, Counts, SortedTrials

N_SPEAKERS = 1251  # the number of speakers of VoxCeleb1-E, and its share of target trials
COSTS = [Cost(), Cost(p_target=0.05)]


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=600_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--scores", type=Path, nargs="+", default=[])
    arguments = parser.parse_args()
    if arguments.scores:
        print("| scores | figure | ours | theirs | difference |\n|---|---|--:|--:|--:|")
        for path in arguments.scores:
            print_agreement(path)
    else:
        print_speed(arguments.trials, arguments.resamples)


def print_speed(n_trials: int, n_resamples: int) -> None:
    """Prints wall and CPU time of all metrics, and of their bootstrap by speaker."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n_trials) < n_trials // 2)
    scores = rng.normal(size=n_trials) + 4 * labels
    enrol = rng.integers(N_SPEAKERS, size=n_trials)
    test = np.where(labels, enrol, (enrol + rng.integers(1, N_SPEAKERS, size=n_trials)) % N_SPEAKERS)
    print(f"| {n_trials} trials, {N_SPEAKERS} speakers | wall s | processor s |\n|---|--:|--:|")

    def compute_metrics(counts: Counts) -> list[float]:
        return [counts.eer(), *counts.min_dcfs(COSTS), counts.frr_at_far(0.01), counts.frr_at_far(0.001)]

    def compute_all_metrics() -> None:
        trials = SortedTrials.of(scores, labels)
        pooled = llr.pool(trials)
        compute_metrics(trials.count()), llr.hull_eer(pooled), llr.pooled_cllr(pooled)
        llr.cllr(scores, labels), metrics.det_points(scores, labels)

    def compute_intervals() -> None:
        resample([SortedTrials.of(scores, labels)], Units.of(enrol, test), compute_metrics, n=n_resamples)

    for name, function in (
        ("all metrics, DET points", compute_all_metrics),
        (f"{n_resamples} resamples", compute_intervals),
    ):
        wall, processor = time.perf_counter(), time.process_time()
        function()
        print(f"| {name} | {time.perf_counter() - wall:.2f} | {time.process_time() - processor:.2f} |")


def print_agreement(path: Path) -> None:
    """Prints metrics of this library beside those of other toolkits for the same scores."""
    trials = read_trials(path)
    scores, labels = trials.scores, trials.known_labels
    for name, ours, theirs in (*speakerlab(scores, labels), *speechbrain(scores, labels), *sklearn(scores, labels)):
        print(f"| {path.parent.name}/{path.stem} | {name} | {ours:.7f} | {theirs:.7f} | {abs(ours - theirs):.1e} |")


def speakerlab(scores: np.ndarray, labels: np.ndarray) -> list[tuple[str, float, float]]:
    """Returns speakerlab's metrics: its EER interpolates like this library's, and its C_norm is minDCF."""
    for name in ("matplotlib", "matplotlib.pyplot"):  # speakerlab's module also plots
        sys.modules.setdefault(name, types.ModuleType(name))
    from speakerlab.utils import score_metrics as theirs

    frr, far = theirs.compute_pmiss_pfa_rbst(scores, labels.astype(int))
    rows = [("EER, speakerlab", metrics.eer(scores, labels), theirs.compute_eer(frr, far))]
    for cost in COSTS:
        ours = metrics.min_dcf(scores, labels, p_target=cost.p_target)
        rows.append((f"minDCF {cost.p_target}, speakerlab", ours, theirs.compute_c_norm(frr, far, cost.p_target)))
    return rows


def speechbrain(scores: np.ndarray, labels: np.ndarray) -> list[tuple[str, float, float]]:
    """Returns SpeechBrain's metrics: its EER is the mean of both rates at the equal-error threshold.

    Its minDCF is not normalized.
    """
    import torch
    from speechbrain.utils import metric_stats as theirs

    sides = torch.tensor(scores[labels]), torch.tensor(scores[~labels])
    ours = float(np.mean(metrics.far_frr(scores, labels, metrics.eer_threshold(scores, labels))))
    rows = [("EER at the closest point, speechbrain", ours, theirs.EER(*sides)[0])]
    for cost in COSTS:
        ours = cost.p_target * metrics.min_dcf(scores, labels, p_target=cost.p_target)
        other = float(theirs.minDCF(*sides, p_target=cost.p_target)[0])
        rows.append((f"minDCF {cost.p_target}, not normalised, speechbrain", ours, other))
    return rows


def sklearn(scores: np.ndarray, labels: np.ndarray) -> list[tuple[str, float, float]]:
    """Returns EER and minDCF from scikit-learn's ROC, and minCllr from its isotonic regression."""
    from sklearn.isotonic import IsotonicRegression
    from sklearn.metrics import roc_curve

    far, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    frr = 1 - hits
    at = int(np.argmax(frr <= far))
    part = (frr - far)[at - 1] / ((frr - far)[at - 1] - (frr - far)[at])
    rows = [("EER, scikit-learn", metrics.eer(scores, labels), far[at - 1] + part * (far[at] - far[at - 1]))]
    for cost in COSTS:
        theirs = (cost.miss * frr + cost.false_alarm * far).min() / min(cost.miss, cost.false_alarm)
        ours = metrics.min_dcf(scores, labels, p_target=cost.p_target)
        rows.append((f"minDCF {cost.p_target}, scikit-learn", ours, float(theirs)))
    fit = IsotonicRegression().fit(scores, labels).predict(scores)
    with np.errstate(divide="ignore"):
        ratios = np.log(fit) - np.log1p(-fit) - np.log(labels.sum() / (~labels).sum())
    losses = np.where(labels, np.logaddexp(0, -ratios), np.logaddexp(0, ratios)) / np.log(2)
    rows.append(
        ("minCllr, scikit-learn", llr.min_cllr(scores, labels), (losses[labels].mean() + losses[~labels].mean()) / 2)
    )
    return rows


if __name__ == "__main__":
    main()
