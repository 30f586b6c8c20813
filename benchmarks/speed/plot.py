"""Plots the time of each engine relative to PyTorch eager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.engines import EAGER, ENGINES, KINDS

COLOURS = {
    "ours": "#0b5394",
    "ours-bf16": "#3d85c6",
    "torch": "#7f6000",
    "torch-compile": "#bf9000",
    "torch-bf16": "#f1c232",
    "speechbrain": "#999999",
    "onnxruntime": "#38761d",
    "openvino": "#674ea7",
    "openvino-bf16": "#b4a7d6",
    "flaxspeaker": "#cc4125",
}

TOP = 1.6
"""Bars are cut at this value; the numbers above them are not."""


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws a group of bars for each cell and a panel for each kind and width; lower is faster.

    Raises:
      ValueError: if PyTorch eager was not measured.
    """
    from matplotlib.figure import Figure

    rows = results["grid"]
    if not any(EAGER in row["engines"] for row in rows):
        raise ValueError("the plot is relative to PyTorch eager, which was not measured")
    panels = list(dict.fromkeys((row["kind"], row["width"]) for row in rows))
    n_cells = max(sum((row["kind"], row["width"]) == panel for row in rows) for panel in panels)
    figure = Figure(figsize=(max(8.0, 1.9 * n_cells), 3.0 * len(panels) + 0.8), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        _panel(axes, [row for row in rows if (row["kind"], row["width"]) == panel])
        axes.set_title(f"{KINDS[panel[0]]}, C = {panel[1]}", fontsize=10)
    handles = {label: handle for axes in figure.axes for handle, label in _legend(axes)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"Time of a call over PyTorch eager's: lower is faster ({results['machine']})", fontsize=11)
    figure.savefig(path, dpi=120)


def _panel(axes: Any, rows: list[dict[str, Any]]) -> None:
    names = [name for name in ENGINES if any(name in row["engines"] for row in rows)]
    width = 0.84 / len(names)
    for index, name in enumerate(names):
        ratios = {at: row["engines"].get(name, {}).get("than_eager") for at, row in enumerate(rows)}
        places = [at + (index - (len(names) - 1) / 2) * width for at, ratio in ratios.items() if ratio]
        heights = [1 / ratio for ratio in ratios.values() if ratio]
        axes.bar(places, np.minimum(heights, TOP), width, color=COLOURS[name], label=ENGINES[name].title)
        for place, height in zip(places, heights, strict=True):
            axes.annotate(f"{height:.2f}", (place, min(height, TOP)), (0, 2), textcoords="offset points", fontsize=6,
                          ha="center", rotation=90)  # fmt: skip
    axes.axhline(1, color="black", linewidth=0.6, linestyle="--", zorder=0)
    axes.set_ylim(0, 1.2 * TOP)
    axes.set_xticks(range(len(rows)), [f"{row['batch']} x {row['seconds']:g} s" for row in rows])
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Any) -> Any:
    return zip(*axes.get_legend_handles_labels(), strict=True)
