"""Draws turns on a time line as PNG. matplotlib is imported on first use."""

from __future__ import annotations

from pathlib import Path

from ecapa_jax.diarization.result import Diarization
from ecapa_jax.errors import DiarizationError

_COLOURS = (
    "#0b5394",
    "#cc4125",
    "#38761d",
    "#674ea7",
    "#b45f06",
    "#45818e",
    "#a64d79",
    "#7f6000",
    "#3d85c6",
    "#6aa84f",
)
_LONG = 600.0  # seconds; the axis of a longer recording is in minutes


def plot_turns(path: Path, result: Diarization, title: str, *, exclusive: bool = False) -> None:
    """Draws turns, with one row for each speaker.

    Raises:
      DiarizationError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DiarizationError("plots need matplotlib: pip install 'ecapa-jax[diarize]'") from error
    names = [speaker.name for speaker in result.speakers]
    figure = Figure(figsize=(10, 1.4 + 0.45 * max(len(names), 1)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    scale = 60.0 if result.duration > _LONG else 1.0
    for row, name in enumerate(names):
        bars = [
            (turn.start / scale, (turn.end - turn.start) / scale)
            for turn in (result.exclusive if exclusive else result.turns)
            if turn.speaker == name
        ]
        axes.broken_barh(bars, (row - 0.35, 0.7), facecolors=_COLOURS[row % len(_COLOURS)])
    axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    axes.set(
        xlim=(0, max(result.duration, 0.1) / scale),
        ylim=(max(len(names), 1) - 0.5, -0.5),
        title=title.replace("$", r"\$"),
    )
    axes.set_xlabel("minutes" if scale > 1 else "seconds")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    figure.savefig(path, format="png", metadata={"Software": None})
