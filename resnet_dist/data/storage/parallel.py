"""Work on ranges of rows in threads: few where the CPU limits the speed, many where threads wait for a network disk."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

CHUNK = 128  # rows: long enough that handing a range to a thread costs nothing, short enough to see progress
_FIRST, _MOST = 1, 64  # threads; assumption: a network disk is no faster for more than 64 requests at once
_BUSY = 0.5  # seconds of all threads a second: with more of them, more threads only wait for the interpreter


def in_chunks(num: int, work: Callable[[int, int], T]) -> Iterator[tuple[int, int, T]]:
    """(first, end, work(first, end)) of ranges that cover `num` rows, in order.

    An exception of `work` is raised here. Threads end after their current range if the iterator is closed. They are
    daemons: a thread that waits for a dead network disk does not keep the process alive.
    """
    starts, results = iter(range(0, num, CHUNK)), queue.SimpleQueue[tuple[int, T | BaseException, float]]()
    lock, over = threading.Lock(), threading.Event()

    def run() -> None:
        while not over.is_set():
            with lock:
                start = next(starts, None)
            if start is None:
                return
            before = _busy_s()
            try:
                result: T | BaseException = work(start, min(start + CHUNK, num))
            except BaseException as error:
                result = error
            results.put((start, result, _busy_s() - before))

    def begin(more: int) -> None:
        for _ in range(more):
            threading.Thread(target=run, name="index", daemon=True).start()

    waiting: dict[int, T | BaseException] = {}
    threads, load = _FIRST, _Load()
    begin(_FIRST)
    try:
        for first in range(0, num, CHUNK):
            while first not in waiting:
                start, waiting[start], busy_s = results.get()
                if load.is_low(busy_s) and threads < _MOST:
                    begin(threads)
                    threads *= 2
            found = waiting.pop(first)
            if isinstance(found, BaseException):
                raise found
            yield first, min(first + CHUNK, num), found
    finally:
        over.set()


class _Load:
    """Whether threads mostly wait for something else than a CPU, by what they report; over a quarter of a second."""

    def __init__(self) -> None:
        self._since, self._busy_s, self._own_s = time.monotonic(), 0.0, _busy_s()

    def is_low(self, busy_s: float) -> bool:
        """Count `busy_s` of a thread; True at the end of a period in which they were few."""
        self._busy_s += busy_s
        elapsed = time.monotonic() - self._since
        if elapsed < 0.25:
            return False
        own_s = _busy_s()
        low = self._busy_s + own_s - self._own_s < _BUSY * elapsed
        self._since, self._busy_s, self._own_s = time.monotonic(), 0.0, own_s
        return low


def _busy_s() -> float:
    """Seconds in which this thread had a CPU, or was waiting for one (Linux tells; see proc(5), schedstat)."""
    waiting_ns = 0
    with contextlib.suppress(OSError, ValueError), open("/proc/thread-self/schedstat", "rb") as file:  # noqa: PTH123
        _, waiting, _ = file.read().split()
        waiting_ns = int(waiting)
    return time.thread_time() + waiting_ns / 1e9
