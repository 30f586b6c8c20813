"""The grid: widths, batches and lengths, network alone and waveform to embedding, every engine in turn."""

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
    """What to measure.

    Attributes:
      most_seconds: cells whose batch holds more audio are left out.
      cell_seconds: about how long to measure a cell; large ones take the fewest turns in whatever they need.
    """

    engines: tuple[str, ...]
    widths: tuple[int, ...]
    batches: tuple[int, ...]
    seconds: tuple[float, ...]
    most_seconds: float
    cell_seconds: float

    def cells(self, width: int) -> Iterator[Cell]:
        """Of a width; both kinds of a shape follow each other, so that what is made for a shape serves both."""
        for batch, seconds in itertools.product(self.batches, self.seconds):
            if batch * seconds <= self.most_seconds:
                for kind in KINDS:
                    yield Cell(width, batch, seconds, kind)


def measure(plan: Plan, folder: Path, notes: dict[str, str], say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Rows of results, one a cell.

    Args:
      folder: for weights and exported networks.
      notes: is given why an engine has no result.
      say: is told what is measured.
    """
    for width in plan.widths:
        model = Model(width, folder)
        engines = load(plan.engines, model, notes)
        for cell in plan.cells(width):
            say(f"C = {cell.width}, batch {cell.batch}, {cell.seconds:g} s, {KINDS[cell.kind]}")
            yield measure_cell(cell, model, engines, notes, plan.cell_seconds)


def load(names: tuple[str, ...], model: Model, notes: dict[str, str]) -> dict[str, Engine]:
    """The engines that can be had; `notes` says why another can't."""
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
    """Times, ratios and distance from our embeddings of each engine that has this kind and does not fail."""
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
    times = turns.in_turns(calls, seconds)
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
    """Our float32 embeddings of a cell."""

    def __init__(self, cell: Cell, model: Model, engines: dict[str, Engine]):
        from benchmarks.speed.engines_jax import Reference

        self._cell, self._engines = cell, engines
        self._reference = Reference(model)
        self._rows: dict[str, np.ndarray] = {}

    def gap(self, name: str, embeddings: np.ndarray, inputs: np.ndarray) -> float | None:
        """Largest difference over our largest value; None for another network's embeddings.

        A front end of its own is compared with ours of that family on the first recording.
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
    """The first line of what an engine says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
