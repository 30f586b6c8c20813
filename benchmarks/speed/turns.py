"""Calls several engines in turn, so that other load on the machine affects all of them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

FEWEST, MOST = 3, 15
PAUSE = 0.01
"""Seconds to wait before each call, so that spinning thread pools of the previous engine do not use the cores."""


def time_in_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Returns the seconds of each call in each turn, in a rotating order.

    Args:
      calls: the calls, which must have been compiled by an earlier call.
      seconds: the time for all turns; their number is between `FEWEST` and `MOST`. If time permits, the first turn is
        only a warm-up.
    """
    first = {name: time_call(call) for name, call in calls.items()}
    n_turns = max(FEWEST, min(MOST, int(seconds / sum(first.values())) - 1))
    times: dict[str, list[float]] = {name: [] for name in calls}
    if n_turns == FEWEST:
        times = {name: [taken] for name, taken in first.items()}
    names = list(calls)
    for turn in range(n_turns - len(times[names[0]])):
        start = (turn + 1) % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(time_call(calls[name]))
    return times


def time_call(call: Callable[[], object]) -> float:
    """Returns the seconds of one call."""
    time.sleep(PAUSE)
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def median(times: list[float]) -> float:
    """Returns the median time."""
    return statistics.median(times)


def times_as_fast(times: list[float], base: list[float]) -> float:
    """Returns the speed relative to `base`, as the median of the ratios of all turns."""
    return statistics.median(b / a for a, b in zip(times, base, strict=True))
