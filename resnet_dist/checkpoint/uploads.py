"""The thread that copies checkpoints to the mirror, so that a slow or unreachable store does not delay training."""

from __future__ import annotations

import logging
import queue
import threading
import time
from pathlib import Path

from resnet_dist.checkpoint.mirror import Mirror
from resnet_dist.errors import TrainingError

log = logging.getLogger(__name__)

Detail = dict[str, object]  # of an event; JSON


class Uploads:
    """Uploads one checkpoint at a time. Of those that wait only the newest is uploaded; the others are skipped."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._condition = threading.Condition()
        self._next: tuple[int, Path] | None = None
        self._current: int | None = None
        self._closing = False
        self._num_failures = 0  # consecutive
        self._events: queue.SimpleQueue[tuple[int, str, Detail]] = queue.SimpleQueue()
        # A daemon thread: a network that never answers must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="checkpoint-mirror", daemon=True)
        self._thread.start()

    def add(self, step: int, checkpoint: Path) -> None:
        """Upload `checkpoint` after the current upload."""
        with self._condition:
            if self._next is not None:
                self._add_event(self._next[0], "mirror_skipped", {"overtaken_by": step})
            self._next = (step, checkpoint)
            self._condition.notify()

    def steps(self) -> set[int]:
        """Return the steps of the checkpoints that are still to be read and must not be deleted."""
        with self._condition:
            waiting = set() if self._next is None else {self._next[0]}
            return waiting if self._current is None else waiting | {self._current}

    def events(self) -> list[tuple[int, str, Detail]]:
        """Return the events since the last call: (step, "mirrored", "mirror_failed" or "mirror_skipped", detail)."""
        found = []
        while not self._events.empty():
            found.append(self._events.get())
        return found

    def close(self, timeout_s: float) -> None:
        """Wait for the uploads for at most `timeout_s`. Those that are not finished by then have failed."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            for step in sorted(self.steps()):
                self._add_failure(step, {"problem": f"not finished {timeout_s:g} s after the end of the run"})

    def _run(self) -> None:
        while True:
            with self._condition:
                self._current = None
                self._condition.wait_for(lambda: self._next is not None or self._closing)
                if self._next is None:
                    return
                (step, checkpoint), self._next = self._next, None
                self._current = step
            self._upload(step, checkpoint)

    def _upload(self, step: int, checkpoint: Path) -> None:
        started = time.perf_counter()
        try:
            size_bytes = self._mirror.upload(checkpoint, step)
        except TrainingError as error:
            self._num_failures += 1
            self._add_failure(step, {"problem": str(error), "in_a_row": self._num_failures})
        else:
            self._num_failures = 0
            time_s = time.perf_counter() - started
            self._add_event(step, "mirrored", {"size_bytes": size_bytes, "time_s": time_s})

    def _add_failure(self, step: int, detail: Detail) -> None:
        log.warning("the checkpoint of step %d was not copied to the mirror: %s", step, detail["problem"])
        self._add_event(step, "mirror_failed", detail)

    def _add_event(self, step: int, event: str, detail: Detail) -> None:
        self._events.put((step, event, {"url": self._mirror.url, **detail}))
