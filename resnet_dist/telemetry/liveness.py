"""Where a training process is, told by its training thread and read by whoever watches over it.

    phase     start -> step -> evaluate -> save -> step -> ...      one call of the trainer each
    count     grows with every sign of progress
    own_s     what a step took this worker alone, without the time in which it waited for others

The training thread writes plain attributes, so a beat costs less than a microsecond and never blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

Item = TypeVar("Item")

LONG_PHASES = ("start", "save")  # one long call each, in which nothing can beat


class Pulse:
    """The pulse of one training process. Written by its training thread alone, read by any thread."""

    def __init__(self) -> None:
        self.phase, self.step, self.count = "start", 0, 0
        self.gradients_are_ready = False  # this worker's part of the step is done: what is left is the others'
        self._own: _HostTime | _DeviceTime = _HostTime()  # of the running step

    def enter(self, phase: str, step: int) -> None:
        """A phase begins; `step` is the step that runs, or the completed steps outside of one."""
        self.phase, self.step, self.gradients_are_ready = phase, step, False
        self.count += 1
        if phase == "step":
            self._own.begin()

    def beat(self) -> None:
        """Progress inside a phase."""
        self.count += 1

    def beating(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass on `items`, with a beat for each."""
        for item in items:
            self.beat()
            yield item

    def own_s(self) -> float:
        """Seconds that this worker needed for a step, waits for others left out; 0.0 where that is not known.

        On a CPU it is the running step, up to its last gradient. On a GPU it is the newest step that the device has
        finished, by the device's own clock; there, exchanges inside the forward pass (spans over several workers)
        count as work.
        """
        return self._own.seconds()

    def watch(self, model: nn.Module, device: torch.device, waited_s: Callable[[], float] = lambda: 0.0) -> None:
        """Measure `own_s`: the step ends where the first parameter, the last of the backward pass, has its gradient.

        `waited_s` counts all seconds that this process has waited for others inside forward and backward passes.
        """
        self._own = _DeviceTime() if device.type == "cuda" else _HostTime(waited_s)
        first = next((parameter for parameter in model.parameters() if parameter.requires_grad), None)
        if first is not None:
            first.register_post_accumulate_grad_hook(self._on_gradient)

    def _on_gradient(self, _: torch.Tensor) -> None:
        self._own.end()  # once a micro-batch: the last one counts
        self.gradients_are_ready = True


class _HostTime:
    """By this process's clock."""

    def __init__(self, waited_s: Callable[[], float] = lambda: 0.0) -> None:
        self._waited_s = waited_s
        self._began, self._waited_before, self._seconds = 0.0, 0.0, 0.0

    def begin(self) -> None:
        self._began, self._waited_before, self._seconds = time.perf_counter(), self._waited_s(), 0.0

    def end(self) -> None:
        self._seconds = time.perf_counter() - self._began - (self._waited_s() - self._waited_before)

    def seconds(self) -> float:
        return self._seconds


class _DeviceTime:
    """By the GPU's clock, between two marks in its stream of work; read when it has passed both."""

    def __init__(self) -> None:
        self._running: list[Any] = []
        self._passed: list[list[Any]] = []
        self._seconds = 0.0

    def begin(self) -> None:
        if len(self._running) == 2:
            self._passed.append(self._running)
        else:  # the step before was replayed as a graph, where no gradient tells of itself: not known
            self._passed.clear()
            self._seconds = 0.0
        self._running = [self._mark()]

    def end(self) -> None:
        if not torch.cuda.is_current_stream_capturing():  # a mark in a graph could never be read
            self._running[1:] = [self._mark()]

    def seconds(self) -> float:
        while self._passed and self._passed[0][1].query():
            began, ended = self._passed.pop(0)
            self._seconds = began.elapsed_time(ended) / 1000  # CUDA counts milliseconds
        return self._seconds

    @staticmethod
    def _mark() -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
