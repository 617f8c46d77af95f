"""The training loop."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from resnet_dist.data import HostBatch
from resnet_dist.durations import Every
from resnet_dist.engines.protocol import Engine, MicroBatch
from resnet_dist.errors import DivergedError
from resnet_dist.evaluate import Evaluation
from resnet_dist.metrics import PendingTotals, StepExchange, StepTotals
from resnet_dist.sink import Sink
from resnet_dist.supervisor import Request, Supervisor


@dataclass(frozen=True)
class Timetable:
    """When a run does what; all of it a pure function of the step."""

    total_steps: int
    batch_size: int
    num_samples: int  # of the training split
    evaluate: Every
    checkpoint: Every
    log_every: int  # steps


@dataclass(frozen=True)
class Outcome:
    """How a call of `fit` ended: all steps done, or stopped on request with a checkpoint saved."""

    step: int
    finished: bool
    evaluation: Evaluation | None  # of the last step, where it was evaluated


@dataclass(frozen=True)
class Parts:
    """The finished parts that a trainer drives."""

    engine: Engine
    learning_rate: Callable[[int], float]
    batches_from: Callable[[int], Generator[HostBatch, None, None]]  # first step -> micro-batches, endless enough
    to_device: Callable[[HostBatch], MicroBatch]
    evaluate: Callable[[], Evaluation]
    exchange: StepExchange
    save: Callable[[int], str]  # completed steps -> path of the checkpoint ("" on all workers but rank 0)
    sink: Sink
    supervisor: Supervisor


class Trainer:
    """Runs steps `first_step` to the end of the timetable, or until any worker is asked to stop.

    Losses and requests of a step are read when the next step has been started, so that the host never waits for the
    device; a request is therefore obeyed at the second step boundary after it at the latest.
    """

    def __init__(self, parts: Parts, timetable: Timetable, num_micro_batches: int, first_step: int = 0) -> None:
        self.parts = parts
        self.timetable = timetable
        self.num_micro_batches = num_micro_batches
        self.first_step = first_step
        self._clock = _Clock()

    def fit(self) -> Outcome:
        """Train; returns on every worker at the same step.

        Raises DivergedError when the loss is not finite; no checkpoint is written of such a step.
        """
        parts, timetable = self.parts, self.timetable
        self._event(self.first_step, "started", {"total_steps": timetable.total_steps})
        pending: PendingTotals | None = None
        evaluation: Evaluation | None = None
        with closing(parts.batches_from(self.first_step)) as batches:
            for step in range(self.first_step + 1, timetable.total_steps + 1):
                # --- one optimizer step
                with self._clock.running(step):
                    micro_batches = self._micro_batches(batches)
                    sums = parts.engine.step(micro_batches, parts.learning_rate(step - 1))
                    previous, pending = pending, parts.exchange.finish(step, sums, parts.supervisor.request())
                    totals = previous.read() if previous else None  # on a GPU, the wait for its work is here

                # --- what the step before has left, a step late
                request = self._record(totals) if totals else Request.CONTINUE

                # --- events of this boundary
                evaluation_is_due = timetable.evaluate.fires_after(step) or step == timetable.total_steps
                checkpoint_is_due = timetable.checkpoint.fires_after(step) or step == timetable.total_steps
                if evaluation_is_due or checkpoint_is_due or request is not Request.CONTINUE:
                    with self._clock.running(step):
                        totals = pending.read()
                    request, pending = max(request, self._record(totals)), None
                evaluation = self._evaluate(step) if evaluation_is_due else None
                if checkpoint_is_due or request is not Request.CONTINUE:
                    self._save(step)
                if request is Request.STOP and step < timetable.total_steps:
                    self._event(step, "stopped", {})
                    return Outcome(step, finished=False, evaluation=evaluation)
        if evaluation is None:  # resumed after the last step
            evaluation = self._evaluate(timetable.total_steps)
        self._event(timetable.total_steps, "finished", {})
        return Outcome(timetable.total_steps, finished=True, evaluation=evaluation)

    def _micro_batches(self, batches: Iterator[HostBatch]) -> Iterator[MicroBatch]:
        """The micro-batches of one step, each moved to the device when the engine asks for it."""
        for batch in itertools.islice(self._clock.waiting(batches), self.num_micro_batches):
            yield self.parts.to_device(batch)

    def _record(self, totals: StepTotals) -> Request:
        """Check a step's totals and write them where they are due; returns what any worker asked for."""
        if not math.isfinite(totals.loss):
            raise DivergedError(totals.step, totals.loss)
        timetable = self.timetable
        if totals.step % timetable.log_every == 0 or totals.step == timetable.total_steps:
            times = self._clock.lap(totals.step)
            self._write(
                {
                    "kind": "train",
                    "step": totals.step,
                    "epoch": self._epoch(totals.step),
                    "loss": totals.loss,
                    "top1": totals.top1,
                    "learning_rate": self.parts.learning_rate(totals.step - 1),
                    "images_per_s": timetable.batch_size / times["step_time_s"],
                    **times,
                    "time_left_s": (timetable.total_steps - totals.step) * times["step_time_s"],
                }
            )
        return totals.request

    def _evaluate(self, step: int) -> Evaluation:
        started = time.perf_counter()
        evaluation = self.parts.evaluate()
        seconds = time.perf_counter() - started
        record = {"kind": "eval", "step": step, "epoch": self._epoch(step), **asdict(evaluation), "time_s": seconds}
        self._write(record)
        return evaluation

    def _save(self, step: int) -> None:
        started = time.perf_counter()
        path = self.parts.save(step)
        if path:
            self.parts.supervisor.checkpoint(path, step)
        self._event(step, "checkpoint", {"path": path, "time_s": time.perf_counter() - started})

    def _event(self, step: int, event: str, detail: dict[str, Any]) -> None:
        self._write({"kind": "event", "step": step, "event": event, "detail": detail})

    def _write(self, record: dict[str, Any]) -> None:
        self.parts.sink.write(record)

    def _epoch(self, step: int) -> float:
        return step * self.timetable.batch_size / self.timetable.num_samples


class _Clock:
    """Seconds per step and seconds spent waiting for input, as means over the steps since the last lap.

    A step's totals are recorded when the next step has run already, so times are kept by step until then.
    """

    def __init__(self) -> None:
        self._step = 0
        self._busy_s: defaultdict[int, float] = defaultdict(float)
        self._waited_s: defaultdict[int, float] = defaultdict(float)

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """The time inside belongs to `step`."""
        self._step = step
        started = time.perf_counter()
        yield
        self._busy_s[step] += time.perf_counter() - started

    def waiting(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
        """Pass on `batches`, and count what each one takes to come."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self._waited_s[self._step] += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def lap(self, step: int) -> dict[str, float]:
        """The means over the steps up to `step` that no lap has taken yet; there must be one."""
        steps = [number for number in self._busy_s if number <= step]
        busy_s = sum(self._busy_s.pop(number) for number in steps)
        waited_s = sum(self._waited_s.pop(number, 0.0) for number in steps)
        return {"step_time_s": busy_s / len(steps), "data_wait_s": waited_s / len(steps)}
