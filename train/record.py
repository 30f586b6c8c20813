"""The records of a run: exact metrics, timings, TensorBoard, curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax

from ecapa_jax.files.atomic import write_whole

METRICS, TIMINGS, CURVES = "metrics.jsonl", "timings.jsonl", "curves.png"


class Record:
    """The record files of a run directory, with one record per line.

    `metrics.jsonl` depends only on configuration, data and seed: a resumed run writes the same bytes as an
    uninterrupted one. Times are in a separate file, `timings.jsonl`.

    Args:
      directory: directory of the run.
      step: number of steps done; later lines of an interrupted run are removed, because they will be written again.
      tensorboard: whether to write event files too, if tensorboardX is installed.
    """

    def __init__(self, directory: Path, step: int, *, tensorboard: bool = True):
        self._directory = directory
        for name in (METRICS, TIMINGS):
            _drop_later_lines(directory / name, step)
        self._open_board = _open_board(directory / "tensorboard", step) if tensorboard else None

    def metrics(self, line: dict[str, Any]) -> None:
        """Writes a line of exact figures."""
        self._write(METRICS, line)

    def timings(self, line: dict[str, Any]) -> None:
        """Writes a line of times."""
        self._write(TIMINGS, line)

    def _write(self, name: str, line: dict[str, Any]) -> None:
        with (self._directory / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._open_board is not None:
            for key, value in line.items():
                if key != "step" and isinstance(value, int | float):
                    self._open_board.add_scalar(key, value, line["step"])

    def close(self) -> None:
        """Flushes the event files."""
        if self._open_board is not None:
            self._open_board.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a file; an incomplete last line is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _drop_later_lines(path: Path, step: int) -> None:
    kept = [line for line in read_lines(path) if line["step"] <= step]
    if path.exists():
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(path, lambda to: to.write_text(text, "utf-8"))


def _open_board(folder: Path, step: int) -> Any:
    try:
        import tensorboardX
    except ImportError:
        return None
    return tensorboardX.SummaryWriter(str(folder), purge_step=step + 1)


def plot_curves(directory: Path) -> Path | None:
    """Draws loss, accuracy, learning rate, margin and dev EER over the steps; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    lines = read_lines(directory / METRICS)
    has_teacher = any("teacher_cosine" in line for line in lines)
    panels = (
        (("loss",), "loss"),
        (("teacher_cosine",), "cosine with the teacher") if has_teacher else (("accuracy",), "accuracy"),
        (("dev_eer",), "dev EER"),
        (("learning_rate",), "learning rate"),
        (("margin",), "margin"),
        (("gradient_norm", "parameter_norm"), "norms"),
    )
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (names, title) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(
                    *zip(*points, strict=True), label=name.replace("_", " "), marker="." if len(points) < 40 else ""
                )
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.set_yscale("log")
            axes.legend()
    path = directory / CURVES
    figure.savefig(path, dpi=120)
    return path


def to_python(tree: Any) -> Any:
    """Converts device scalars to Python numbers in one transfer."""
    return jax.tree.map(lambda leaf: leaf.item(), jax.device_get(tree))
