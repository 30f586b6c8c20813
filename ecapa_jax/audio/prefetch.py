"""Runs a function in threads ahead of the consumer, so that decoding continues while the device computes."""

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
    """Does what `map` does, in threads, which compute at most two results per thread in advance.

    Args:
      function: function that the threads call. Its errors are raised in place of its result, and no later call begins.
      items: arguments, which the calling thread takes as they are needed.
      workers: number of threads; None means one for each core, but at most `MAX_WORKERS`.

    Yields:
      The results in the order of the items.
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
