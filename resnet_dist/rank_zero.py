"""Do something on rank 0 for all workers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Generic, TypeVar, cast

import torch.distributed as dist

from resnet_dist.errors import TrainingError

T = TypeVar("T")

TICK_S = 1.0  # between two messages of rank 0 during long work
_FRAMES = 8  # innermost frames of a thread that show whether it moves


def run_on_rank_0(work: Callable[[], T], rank: int, world_size: int, errors: type[Exception] = TrainingError) -> T:
    """Call `work` on rank 0 and return its result on every worker. A collective.

    If `work` raises one of `errors`, every worker raises it, so that none waits for rank 0. Results and errors are
    pickled.
    """
    return run_on_rank(0, work, rank, world_size, errors)


def run_on_rank(
    source: int, work: Callable[[], T], rank: int, world_size: int, errors: type[Exception] = TrainingError
) -> T:
    """As `run_on_rank_0`, on the worker `source`. A collective."""
    if world_size == 1:
        return work()
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if rank == source:
        try:
            outcome = [(work(), None)]
        except errors as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=source)
    result, raised = outcome[0]
    if raised is not None:
        raise raised
    return cast(T, result)


def run_long_on_rank_0(
    work: Callable[[], T],
    rank: int,
    world_size: int,
    *,
    done: Callable[[], object] = lambda: None,
    beat: Callable[[], object] = lambda: None,
    tick: Callable[[], object] = lambda: None,
) -> T:
    """As `run_on_rank_0`, for work that may take longer than the time-out of the process group. A collective.

    A thread of rank 0 does the work, and the workers exchange a message every second. All of them call `beat` when the
    work has moved on, so that a watchdog ends them if it hangs: `done()` has changed, or the thread, or one that it has
    started, is somewhere else in its code. Rank 0 calls `tick` every second. If this call is interrupted, the thread
    goes on until the process ends.
    """
    thread = _Work(work) if rank == 0 else None
    while True:
        moved, over = False, False
        if thread is not None:
            over = thread.wait(TICK_S)
            moved = thread.has_moved(done())
            tick()
        if world_size > 1:
            state = [(moved, over)]
            dist.broadcast_object_list(state, src=0)
            moved, over = state[0]
        if moved:
            beat()
        if over:
            return run_on_rank_0(lambda: cast(_Work[T], thread).result(), rank, world_size)


class _Work(Generic[T]):
    """Work in a thread of its own."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._result: T | None = None
        self._error: BaseException | None = None
        self._others = set(sys._current_frames())  # threads that have nothing to do with it
        self._last: object = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="rank 0", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._result = work()
        except BaseException as error:
            self._error = error

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds`; True once the work is over."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def has_moved(self, done: object) -> bool:
        """Whether `done`, or the place of a thread of this work, has changed since the last call."""
        places = {
            number: _place(frame) for number, frame in sys._current_frames().items() if number not in self._others
        }
        before, self._last = self._last, (done, places)
        return self._last != before

    def result(self) -> T:
        """What the work returned, or raised."""
        if self._error is not None:
            raise self._error
        return cast(T, self._result)


def _place(frame: FrameType | None) -> list[tuple[CodeType, int]]:
    """Where in the code a thread is: one that hangs, or that wakes up now and then and waits again, stays there."""
    place: list[tuple[CodeType, int]] = []
    while frame is not None and len(place) < _FRAMES:
        place.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return place
