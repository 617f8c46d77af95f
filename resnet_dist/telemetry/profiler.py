"""Profiles of selected steps with torch's profiler: a trace and a table."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

log = logging.getLogger(__name__)

_ROWS = 40  # of the table


class StepProfiler:
    """Profiles steps `first` to `last`, inclusive, of a worker.

    Writes `rank-K.trace.json.gz` (for Perfetto or chrome://tracing) and `rank-K.txt`, a table of operations by time, to
    `folder`.
    """

    def __init__(self, first: int, last: int, folder: Path, rank: int, device: torch.device) -> None:
        self._first, self._last, self._folder, self._rank = first, last, folder, rank
        self._on_gpu = device.type == "cuda"
        self._profile: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Profile the code inside the context if step `number` is selected."""
        if number == self._first:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # disables an error message about a missing GPU
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
            self._profile = profile(activities=activities, acc_events=True)
            self._profile.start()
        yield
        if number == self._last:
            self.close()

    def close(self) -> None:
        """Write the profile if the profiler is running: a run may end before the last selected step."""
        if self._profile is None:
            return
        finished, self._profile = self._profile, None
        finished.stop()
        try:
            self._write(finished)
        except OSError as error:
            log.warning("%s: the profile could not be written: %s", self._folder, error.strerror or error)

    def _write(self, finished: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"rank-{self._rank}.trace.json.gz"
        finished.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if self._on_gpu else "self_cpu_time_total"
        table = finished.key_averages().table(sort_by=order, row_limit=_ROWS)
        (self._folder / f"rank-{self._rank}.txt").write_text(table, encoding="utf-8")
        log.info("profile of steps %d to %d: %s", self._first, self._last, trace)
