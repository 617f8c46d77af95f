"""Work on ranges of rows in threads: few where the CPU limits the speed, many where threads wait for a network disk."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

CHUNK = 256  # rows: long enough that handing a range to a thread costs nothing, short enough to see progress
_FIRST, _MOST = 2, 64  # threads; a network disk answers 64 requests at once, and no faster for more
_BUSY = 0.7  # CPU seconds a second: more threads would only wait for the interpreter


def in_chunks(num: int, work: Callable[[int, int], T]) -> Iterator[tuple[int, int, T]]:
    """(first, end, work(first, end)) of ranges that cover `num` rows, in order.

    An exception of `work` is raised here. Threads end after their current range if the iterator is closed. They are
    daemons: a thread that waits for a dead network disk does not keep the process alive.
    """
    starts, results, over = iter(range(0, num, CHUNK)), queue.SimpleQueue[tuple[int, T | BaseException]](), []
    lock = threading.Lock()

    def run() -> None:
        while not over:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            try:
                results.put((start, work(start, min(start + CHUNK, num))))
            except BaseException as error:
                results.put((start, error))

    def begin(more: int) -> None:
        for _ in range(more):
            threading.Thread(target=run, name="index", daemon=True).start()

    waiting: dict[int, T | BaseException] = {}
    threads, load = _FIRST, _Load()
    begin(_FIRST)
    try:
        for first in range(0, num, CHUNK):
            while first not in waiting:
                start, result = results.get()
                waiting[start] = result
            found = waiting.pop(first)
            if isinstance(found, BaseException):
                raise found
            if threads < _MOST and load.is_low():
                begin(threads)
                threads *= 2
            yield first, min(first + CHUNK, num), found
    finally:
        over.append(True)


class _Load:
    """Whether this process leaves CPU time unused; measured over a tenth of a second."""

    def __init__(self) -> None:
        self._since, self._cpu_s = time.monotonic(), time.process_time()

    def is_low(self) -> bool:
        elapsed = time.monotonic() - self._since
        if elapsed < 0.1:
            return False
        used = time.process_time() - self._cpu_s
        self._since, self._cpu_s = time.monotonic(), time.process_time()
        return used < _BUSY * elapsed
