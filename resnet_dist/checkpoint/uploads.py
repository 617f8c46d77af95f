"""The thread that copies checkpoints to the mirror, so that a slow or dead network holds nothing up."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_dist.checkpoint.mirror import Mirror
from resnet_dist.errors import TrainingError


@dataclass(frozen=True)
class Upload:
    """How a copy to the mirror went."""

    step: int
    event: str  # "mirrored", "mirror_failed" or "mirror_skipped"
    detail: dict[str, Any]


class Uploads:
    """Copies one checkpoint at a time, the newest next: one that is overtaken while it waits is skipped."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._condition = threading.Condition()
        self._next: tuple[int, Path] | None = None
        self._current: int | None = None
        self._closing = False
        self._num_failures = 0  # in a row
        self._results: queue.SimpleQueue[Upload] = queue.SimpleQueue()
        # A daemon: a network that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="checkpoint-mirror", daemon=True)
        self._thread.start()

    def add(self, step: int, checkpoint: Path) -> None:
        """Have `checkpoint` copied when the one before is through."""
        with self._condition:
            if self._next is not None:
                detail = {"url": self._mirror.url, "overtaken_by": step}
                self._results.put(Upload(self._next[0], "mirror_skipped", detail))
            self._next = (step, checkpoint)
            self._condition.notify()

    def steps(self) -> set[int]:
        """Steps of the checkpoints that are still read here, and must not be deleted."""
        with self._condition:
            waiting = set() if self._next is None else {self._next[0]}
            return waiting if self._current is None else waiting | {self._current}

    def results(self) -> list[Upload]:
        """What has ended since the last call."""
        found = []
        while not self._results.empty():
            found.append(self._results.get())
        return found

    def close(self, timeout_s: float) -> None:
        """Wait until all copies are through, `timeout_s` at most; what is not through by then has failed."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            for step in sorted(self.steps()):
                detail = {"url": self._mirror.url, "problem": f"was not done {timeout_s:g} s after the end"}
                self._results.put(Upload(step, "mirror_failed", detail))

    def _run(self) -> None:
        while True:
            with self._condition:
                self._current = None
                self._condition.wait_for(lambda: self._next is not None or self._closing)
                if self._next is None:
                    return
                (step, checkpoint), self._next = self._next, None
                self._current = step
            self._results.put(self._upload(step, checkpoint))

    def _upload(self, step: int, checkpoint: Path) -> Upload:
        started = time.perf_counter()
        detail: dict[str, Any] = {"url": self._mirror.url}
        try:
            detail["size_bytes"] = self._mirror.upload(checkpoint, step)
        except TrainingError as error:
            self._num_failures += 1
            return Upload(step, "mirror_failed", {**detail, "problem": str(error), "in_a_row": self._num_failures})
        self._num_failures = 0
        return Upload(step, "mirrored", {**detail, "time_s": time.perf_counter() - started})
