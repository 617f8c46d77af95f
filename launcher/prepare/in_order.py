"""Work on many items in threads, with the results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4  # items for each thread that are worked on ahead


def in_order(items: Iterable[T], work: Callable[[T], R], threads: int) -> Generator[tuple[T, R], None, None]:
    """(item, work(item)) of all items in their order. What `work` raises is raised here.

    >>> list(in_order([3, 1, 2], lambda number: number + 1, threads=2))
    [(3, 4), (1, 2), (2, 3)]
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > _AHEAD * threads:
                    first, made = waiting.popleft()
                    yield first, made.result()
            while waiting:
                first, made = waiting.popleft()
                yield first, made.result()
        finally:
            pool.shutdown(cancel_futures=True)
