"""A look into chosen steps: torch's profiler, as a trace to open and a table to read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

log = logging.getLogger(__name__)

_ROWS = 40  # of the table: what comes after the fortieth operation is small change


class StepProfiler:
    """Profiles steps `first` to `last` (both included) of a worker into `folder`.

    Leaves `rank-K.trace.json.gz` (for chrome://tracing or Perfetto) and `rank-K.txt`, operations by time.
    """

    def __init__(self, first: int, last: int, folder: Path, rank: int, device: torch.device) -> None:
        self._first, self._last, self._folder, self._rank = first, last, folder, rank
        self._on_gpu = device.type == "cuda"
        self._profile: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The work inside is step `number`."""
        if number == self._first:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # above all: it says that there is no GPU, as an error
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
            self._profile = profile(activities=activities, acc_events=True)
            self._profile.start()
        yield
        if number == self._last:
            self.close()

    def close(self) -> None:
        """Write what was seen, where the profiler runs; a run may end before the last step asked for."""
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
        (self._folder / f"rank-{self._rank}.txt").write_text(table)
        log.info("profile of steps %d to %d: %s", self._first, self._last, trace)
