"""The stages of the start of a worker: what it does before the first step, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Stages:
    """Writes an event "stage" whenever a stage begins, with the time of the one before; see `metrics_file`.

    `step`: the completed steps that the attempt continues from.
    """

    def __init__(self, write: Callable[[Mapping[str, object]], object], step: int = 0) -> None:
        self._write, self._step = write, step
        self._stage: str | None = None
        self._began = time.perf_counter()

    def write_to(self, write: Callable[[Mapping[str, object]], object]) -> None:
        """Write to another place from now on."""
        self._write = write

    def begin(self, stage: str | None) -> None:
        """A stage begins, and the one before ends; None: the start is over."""
        now = time.perf_counter()
        ended = {} if self._stage is None else {"ended": self._stage, "time_s": round(now - self._began, 3)}
        if ended or stage is not None:
            detail = {"begins": stage, **ended}
            self._write({"kind": "event", "step": self._step, "event": "stage", "detail": detail})
        self._stage, self._began = stage, now


class NoStages(Stages):
    """Stages that are not reported."""

    def __init__(self) -> None:
        super().__init__(lambda record: None)
