"""Measures all widths, batches and lengths, for the network alone and from waveform to embedding."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import turns
from benchmarks.speed.engines import EAGER, ENGINES, KINDS, OURS, Call, Engine, make
from benchmarks.speed.model import Model, cores, noise, random_features
from benchmarks.speed.work import network_flops


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement; `kind` is a key of `KINDS`."""

    width: int
    batch: int
    seconds: float
    kind: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cells to measure.

    Attributes:
      most_seconds: cells whose batch has more audio are omitted.
      cell_seconds: the approximate time for a cell; large cells take longer, with the smallest number of turns.
    """

    engines: tuple[str, ...]
    widths: tuple[int, ...]
    batches: tuple[int, ...]
    seconds: tuple[float, ...]
    most_seconds: float
    cell_seconds: float

    def cells(self, width: int) -> Iterator[Cell]:
        """Yields the cells of a width; both kinds of a shape are adjacent, so that they share compiled engines."""
        for batch, seconds in itertools.product(self.batches, self.seconds):
            if batch * seconds <= self.most_seconds:
                for kind in KINDS:
                    yield Cell(width, batch, seconds, kind)


def measure(plan: Plan, folder: Path, notes: dict[str, str], say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yields one row of results for each cell.

    Args:
      folder: the folder for weights and exported networks.
      notes: a dict that receives the reason if an engine has no result.
      say: a function that prints progress.
    """
    for width in plan.widths:
        model = Model(width, folder)
        engines = load(plan.engines, model, notes)
        for cell in plan.cells(width):
            say(f"C = {cell.width}, batch {cell.batch}, {cell.seconds:g} s, {KINDS[cell.kind]}")
            yield measure_cell(cell, model, engines, notes, plan.cell_seconds)


def load(names: tuple[str, ...], model: Model, notes: dict[str, str]) -> dict[str, Engine]:
    """Loads the available engines, and adds the reason for each missing engine to `notes`."""
    from benchmarks.speed import engines_torch

    model.write()
    engines_torch.export(model)
    engines = {}
    for name in names:
        try:
            engines[name] = make(name, model)
        except Exception as error:
            notes[ENGINES[name].title] = one_line(error)
    return engines


def measure_cell(
    cell: Cell, model: Model, engines: dict[str, Engine], notes: dict[str, str], seconds: float
) -> dict[str, Any]:
    """Returns times, ratios and distance from our embeddings for each engine that has this kind and does not fail."""
    inputs = (noise if cell.kind == "embed" else random_features)(cell.batch, cell.seconds)
    found: dict[str, Call] = {name: getattr(engine, cell.kind) for name, engine in engines.items()}
    references = Expected(cell, model, engines)
    calls, gaps = {}, {}
    for name, call in found.items():
        if call is None:
            continue
        try:
            gaps[name] = references.gap(name, call(inputs), inputs)
        except Exception as error:
            notes[f"{ENGINES[name].title}, {KINDS[cell.kind]}"] = one_line(error)
        else:
            calls[name] = functools.partial(call, inputs)
    times = turns.time_in_turns(calls, seconds)
    return {**dataclasses.asdict(cell), "engines": {name: _figures(cell, model, name, times, gaps) for name in times}}


def _figures(
    cell: Cell, model: Model, name: str, times: dict[str, list[float]], gaps: dict[str, float | None]
) -> dict[str, Any]:
    median = turns.median(times[name])
    n_frames = random_features(1, cell.seconds).shape[1]
    flops = cell.batch * network_flops(model.config().ecapa, n_frames)
    return {
        "times": times[name],
        "median": median,
        "than_ours": turns.times_as_fast(times[name], times[OURS]),
        "than_eager": turns.times_as_fast(times[name], times[EAGER]) if EAGER in times else None,
        "gflops": 1e-9 * flops / median if cell.kind == "network" else None,
        "hours": cell.batch * cell.seconds / median / cores(),
        "gap": gaps[name],
    }


class Expected:
    """This library's float32 embeddings of a cell."""

    def __init__(self, cell: Cell, model: Model, engines: dict[str, Engine]):
        from benchmarks.speed.engines_jax import Reference

        self._cell, self._engines = cell, engines
        self._reference = Reference(model)
        self._rows: dict[str, np.ndarray] = {}

    def gap(self, name: str, embeddings: np.ndarray, inputs: np.ndarray) -> float | None:
        """Returns the largest difference divided by our largest value, or None for another network.

        An engine with another front end is compared with our front end of that family on the first recording.
        """
        engine = self._engines[name]
        if engine.own_weights:
            return None
        family = "3dspeaker" if self._cell.kind == "network" else engine.family
        if family not in self._rows:
            if family == "3dspeaker":
                self._rows[family] = getattr(self._engines[OURS], self._cell.kind)(inputs)
            else:
                self._rows[family] = self._reference.embed(family, inputs[:1])
        expected = self._rows[family]
        return float(np.abs(embeddings[: len(expected)] - expected).max() / np.abs(expected).max())


def one_line(error: Exception) -> str:
    """Returns the first line of an error message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
