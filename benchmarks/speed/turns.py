"""Calls of several engines in turn, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

FEWEST, MOST = 3, 15
PAUSE = 0.01
"""Seconds before each call. Thread pools wait in a loop for more work; the next engine's call must not share cores with
them."""


def in_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, one a turn, in an order that rotates.

    Args:
      calls: each must have been called, and so compiled, before.
      seconds: as many turns as fit in it, from `FEWEST` to `MOST`. Where there is time the first turn warms up only.
    """
    first = {name: timed(call) for name, call in calls.items()}
    n_turns = max(FEWEST, min(MOST, int(seconds / sum(first.values())) - 1))
    times: dict[str, list[float]] = {name: [] for name in calls}
    if n_turns == FEWEST:
        times = {name: [taken] for name, taken in first.items()}
    names = list(calls)
    for turn in range(n_turns - len(times[names[0]])):
        start = (turn + 1) % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(timed(calls[name]))
    return times


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    time.sleep(PAUSE)
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def median(times: list[float]) -> float:
    """Of the calls."""
    return statistics.median(times)


def times_as_fast(times: list[float], base: list[float]) -> float:
    """As `base`: the median of each turn's ratio."""
    return statistics.median(b / a for a, b in zip(times, base, strict=True))
