"""Work done ahead in threads: decoding runs while the device computes, a bounded number of results wait."""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_WORKERS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Generator[Result, None, None]:
    """`map` in threads, in order, at most two results a thread ahead of whoever takes them.

    Args:
      function: called in the threads; what it raises is raised in the result's turn, and nothing after it is begun.
      items: taken in the calling thread, as they are needed.
      workers: threads; None is one a core, at most `MAX_WORKERS`.
    """
    workers = workers or min(MAX_WORKERS, os.cpu_count() or 1)
    remaining = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        waiting: collections.deque[Future[Result]] = collections.deque()
        try:
            waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, 2 * workers))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
