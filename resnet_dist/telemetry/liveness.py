"""The progress of a training process: written by its training thread, read by a watchdog.

The training thread writes plain attributes, so a report of progress costs less than a microsecond and never blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

Item = TypeVar("Item")

LONG_PHASES = ("start", "save")  # phases that are one long call, without progress in between


class Liveness:
    """The progress of one training process. Its training thread writes it; any thread may read it.

    phase     start, step, evaluate or save: the trainer's current call
    step      the running step, or the number of completed steps outside of one
    count     increases with every report of progress
    """

    def __init__(self) -> None:
        self.phase, self.step, self.count = "start", 0, 0
        self.gradients_are_ready = False  # this worker's part of the step is complete; the rest waits for other workers
        self._timer: _HostTimer | _DeviceTimer = _HostTimer()  # of the local step time

    def enter(self, phase: str, step: int) -> None:
        """Begin a phase."""
        self.phase, self.step, self.gradients_are_ready = phase, step, False
        self.count += 1
        if phase == "step":
            self._timer.begin()

    def beat(self) -> None:
        """Report progress inside a phase."""
        self.count += 1

    def beating(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items`, and report progress with each."""
        for item in items:
            self.beat()
            yield item

    def local_step_time_s(self) -> float:
        """Seconds that this worker needed for a step, without waits for other workers; 0.0 if unknown.

        On a CPU: the running step, up to its last gradient. On a GPU: the newest step that the device has finished, by
        the device's clock; exchanges inside the forward pass (spans over several workers) count as local time there.
        """
        return self._timer.seconds()

    def watch(self, model: nn.Module, device: torch.device, waited_s: Callable[[], float] = lambda: 0.0) -> None:
        """Measure local step times of `model`: they end when its first parameter, the last in backward, has a gradient.

        `waited_s` returns the seconds that this process has waited for others so far inside forward and backward.
        """
        self._timer = _DeviceTimer() if device.type == "cuda" else _HostTimer(waited_s)
        first = next((parameter for parameter in model.parameters() if parameter.requires_grad), None)
        if first is not None:
            first.register_post_accumulate_grad_hook(self._on_gradient)

    def _on_gradient(self, _: torch.Tensor) -> None:
        self._timer.end()  # once per micro-batch: the last one counts
        self.gradients_are_ready = True


class _HostTimer:
    """Local step times by the host's clock."""

    def __init__(self, waited_s: Callable[[], float] = lambda: 0.0) -> None:
        self._waited_s = waited_s
        self._began, self._waited_before, self._seconds = 0.0, 0.0, 0.0

    def begin(self) -> None:
        self._began, self._waited_before, self._seconds = time.perf_counter(), self._waited_s(), 0.0

    def end(self) -> None:
        self._seconds = time.perf_counter() - self._began - (self._waited_s() - self._waited_before)

    def seconds(self) -> float:
        return self._seconds


class _DeviceTimer:
    """Local step times by the GPU's clock, between two events; read once the device has passed both."""

    def __init__(self) -> None:
        self._running: list[torch.cuda.Event] = []
        self._recorded: list[list[torch.cuda.Event]] = []
        self._seconds = 0.0

    def begin(self) -> None:
        if len(self._running) == 2:
            self._recorded.append(self._running)
        else:  # the previous step was a replay of a graph, in which no gradient hook runs: its time is unknown
            self._recorded.clear()
            self._seconds = 0.0
        self._running = [self._event()]

    def end(self) -> None:
        if not torch.cuda.is_current_stream_capturing():  # an event in a graph cannot be read
            self._running[1:] = [self._event()]

    def seconds(self) -> float:
        while self._recorded and self._recorded[0][1].query():
            began, ended = self._recorded.pop(0)
            self._seconds = began.elapsed_time(ended) / 1000  # CUDA counts milliseconds
        return self._seconds

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
