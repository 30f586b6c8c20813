"""Draws DET curve, score histogram and calibration plot of a list as PNG files. Imports Matplotlib when it draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy.special import ndtri

from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring.counts import SortedTrials
from ecapa_jax.scoring.llr import pool
from ecapa_jax.scoring.metrics import det_points, eer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = Float64[np.ndarray, " trials"]
Labels = Bool[np.ndarray, " trials"]

_TICKS = (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
_COLOURS = ("#0b5394", "#cc4125", "#38761d", "#674ea7")
_BINS = 60
_MARKS = 2000  # trials of a kind that the calibration plot shows one by one


def matplotlib_figure(**options: Any) -> tuple[Figure, Axes]:
    """Makes an empty figure that needs no display.

    Raises:
      ScoringError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ScoringError("plots need matplotlib: pip install 'ecapa-jax[evaluate]'") from error
    figure = Figure(figsize=(6.4, 5.6), dpi=120, layout="constrained", **options)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def plot_det(path: Path, systems: Mapping[str, Scores], labels: Labels, title: str) -> None:
    """Plots miss over false alarm rates on normal-deviate axes: a curve for each system, with a dot at its EER."""
    figure, axes = matplotlib_figure()
    n_targets = int(labels.sum())
    smallest = np.array([0.5 / (len(labels) - n_targets), 0.5 / n_targets])  # half a trial
    for colour, (name, scores) in zip(_COLOURS, systems.items(), strict=False):
        rates, rate = det_points(scores, labels), eer(scores, labels)
        far = np.clip(rates.far, smallest[0], 1 - smallest[0])
        frr = np.clip(rates.frr, smallest[1], 1 - smallest[1])
        axes.plot(ndtri(far), ndtri(frr), color=colour, linewidth=1.5, label=f"{name}, EER {rate:.2%}")
        at = float(ndtri(np.clip(rate, smallest.max(), 0.5)))
        axes.plot(at, at, "o", color=colour, markersize=5)
    low = float(min(ndtri(smallest.min()), ndtri(0.01)))
    limits = low, float(ndtri(0.6))
    axes.plot(limits, limits, color="0.75", linewidth=0.8, zorder=0)
    ticks = [tick for tick in _TICKS if ndtri(tick) >= low]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ndtri(ticks), [f"{100 * tick:g}" for tick in ticks])
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="false acceptances, %", ylabel="false rejections, %")
    axes.set_title(title)
    axes.grid(color="0.9")
    axes.legend(loc="upper right", framealpha=1, edgecolor="0.9")
    _save(figure, path)


def plot_scores(path: Path, scores: Scores, labels: Labels, title: str, threshold: float | None) -> None:
    """Plots the distributions of the scores of both kinds of trial, each with area 1."""
    figure, axes = matplotlib_figure()
    edges = np.histogram_bin_edges(scores, _BINS)
    for name, keep, colour in (("non-target", ~labels, _COLOURS[1]), ("target", labels, _COLOURS[0])):
        density, _ = np.histogram(scores[keep], edges, density=True)
        axes.stairs(density, edges, fill=True, alpha=0.45, color=colour, label=f"{name}, {int(keep.sum())} trials")
        axes.stairs(density, edges, color=colour, linewidth=1.2)
    if threshold is not None:
        axes.axvline(threshold, color="0.3", linestyle="--", linewidth=1, label=f"threshold {threshold:.3g}")
    axes.set(xlabel="score", ylabel="density", title=title)
    axes.set_ylim(0, 1.12 * axes.dataLim.ymax)
    axes.margins(x=0.01)
    axes.legend(loc="upper center", ncols=3, frameon=False)
    _save(figure, path)


def plot_calibration(path: Path, scores: Scores, labels: Labels, title: str, llr: bool) -> None:
    """Plots the log-likelihood ratio of each score on these trials, by pooled adjacent violators.

    If scores are log-likelihood ratios, the curve should be the diagonal. For other scores it is the rising function
    that would calibrate them.
    """
    figure, axes = matplotlib_figure()
    trials = SortedTrials.of(scores, labels)
    pooled = pool(trials)
    values = trials.thresholds[:-1]
    ratios = pooled.llr[np.searchsorted(pooled.lowest, values, side="right") - 1] / np.log(10)
    finite = np.isfinite(ratios)
    axes.plot(values[finite], ratios[finite], color=_COLOURS[0], linewidth=1.5, label="pooled adjacent violators")
    if llr:
        axes.plot(values, values / np.log(10), color="0.5", linestyle="--", linewidth=1, label="calibrated")
        axes.set_xlabel("score, a natural log likelihood ratio")
    else:
        axes.set_xlabel("score")
    for name, keep, colour, height in (
        ("target", labels, _COLOURS[0], 0.03),
        ("non-target", ~labels, _COLOURS[1], 0.01),
    ):
        marks = scores[keep][:: max(1, int(keep.sum()) // _MARKS)]
        axes.plot(marks, np.full(len(marks), height), "|", color=colour, markersize=4, alpha=0.25,
                  transform=axes.get_xaxis_transform())  # fmt: skip
        axes.plot([], [], "|", color=colour, label=f"{name} trials")
    axes.set(ylabel="log10 likelihood ratio", title=title)
    axes.margins(y=0.12)
    axes.grid(color="0.9")
    axes.legend(loc="upper left", framealpha=1, edgecolor="0.9")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})


def plot_all(
    folder: Path, systems: Mapping[str, Scores], labels: Labels, title: str, threshold: float | None, *, llr: bool
) -> None:
    """Draws all plots of a list: det.png with every system, and scores and calibration of each system.

    Args:
      folder: folder of the files.
      systems: scores by system; the files of the first system have no system in their names.
      labels: labels of the trials.
      title: title of the plots.
      threshold: threshold of the first system; None if it has none.
      llr: whether the scores of the first system are log-likelihood ratios.

    Raises:
      ScoringError: matplotlib is not installed.
    """
    plot_det(folder / "det.png", systems, labels, title)
    for index, (name, scores) in enumerate(systems.items()):
        end, heading = (".png", title) if index == 0 else (f"_{name}.png", f"{title}, {name}")
        plot_scores(folder / f"score_histogram{end}", scores, labels, heading, None if index else threshold)
        plot_calibration(folder / f"calibration{end}", scores, labels, heading, llr and index == 0)
