"""The training loop."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from resnet_dist.checkpoint.saver import Failed, Saved
from resnet_dist.data import HostBatch
from resnet_dist.engines.protocol import Engine, MicroBatch
from resnet_dist.engines.scaler import LEAST_SCALE
from resnet_dist.errors import DivergedError
from resnet_dist.recipe.durations import Every
from resnet_dist.stop_request import Request, Supervisor
from resnet_dist.telemetry.bottleneck import StepTimes, Verdict
from resnet_dist.telemetry.liveness import Pulse
from resnet_dist.telemetry.metrics_file import Sink
from resnet_dist.telemetry.step_timer import StepClock
from resnet_dist.telemetry.step_totals import PendingTotals, StepExchange, StepTotals
from resnet_dist.telemetry.stragglers import Stragglers
from resnet_dist.training.evaluate import Evaluation

log = logging.getLogger(__name__)


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


class Checkpoints(Protocol):
    """Saves the run's state; what it has to tell goes into the metrics by itself."""

    def save(self, step: int, *, wait: bool, metrics: Mapping[str, float]) -> None:
        """Save `step` completed steps; with `wait`, until it is on the disk. A collective."""
        ...

    def poll(self) -> list[Saved | Failed]:
        """What has been written since the last call. Raises StorageError when too many failed in a row."""
        ...

    def close(self, *, patient: bool) -> None:
        """Wait for what is under way; without patience, for what is on this machine only."""
        ...


class Profiler(Protocol):
    """Looks into chosen steps."""

    def step(self, number: int) -> AbstractContextManager[None]:
        """The work inside is step `number`."""
        ...

    def close(self) -> None:
        """Write what was seen."""
        ...


class Unprofiled:
    """No profiler."""

    def step(self, number: int) -> AbstractContextManager[None]:
        """Nothing is measured."""
        return nullcontext()

    def close(self) -> None:
        """Nothing was seen."""


@dataclass(frozen=True)
class Parts:
    """The finished parts that a trainer drives."""

    engine: Engine
    learning_rate: Callable[[int], float]
    batches_from: Callable[[int], Generator[HostBatch, None, None]]  # first step -> micro-batches, endless enough
    to_device: Callable[[HostBatch], MicroBatch]
    evaluate: Callable[[], Evaluation]
    exchange: StepExchange
    checkpoints: Checkpoints
    sink: Sink
    supervisor: Supervisor
    seed: Callable[[int], None] = lambda step: None  # torch's generators, before a step (0 is the first)
    average: Callable[[int], None] = lambda step: None  # takes in the weights after a step, where they are averaged
    pulse: Pulse = field(default_factory=Pulse)
    profiler: Profiler = field(default_factory=Unprofiled)
    judge: Callable[[list[StepTimes]], Verdict | None] = lambda laps: None
    explain: Callable[[BaseException], Exception | None] = lambda error: None  # what a step's error means, if known


class Trainer:
    """Runs steps `first_step` to the end of the timetable, or until any worker is asked to stop.

    Losses and requests of a step are read when the next step has been started, so that the host never waits for the
    device; a request is therefore obeyed at the second step boundary after it at the latest.
    """

    def __init__(
        self,
        parts: Parts,
        timetable: Timetable,
        num_micro_batches: int,
        first_step: int = 0,
        evaluation_is_owed: bool = False,
        skipped: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.parts = parts
        self.timetable = timetable
        self.num_micro_batches = num_micro_batches
        self.first_step = first_step
        self.evaluation_is_owed = evaluation_is_owed  # of `first_step`: the attempt before was stopped ahead of it
        self.skipped = skipped  # [first, end) steps of the stream that are left out; said at the start
        self._clock = StepClock()
        self._laps: list[StepTimes] = []
        self._stragglers = Stragglers()
        self._checksum = 0

    def fit(self) -> Outcome:
        """Train; returns on every worker at the same step.

        Raises DivergedError when the loss or the gradient is not finite, of which no checkpoint is written, and
        OutOfMemory.
        """
        timetable = self.timetable
        started: dict[str, Any] = {"total_steps": timetable.total_steps}
        started |= {"batch_size": timetable.batch_size, "num_samples": timetable.num_samples}
        if self.skipped:
            started["skipped_steps_of_the_stream"] = [list(run) for run in self.skipped]
        self._event(self.first_step, "started", started)
        patient = False
        try:
            outcome = self._steps()
            patient = outcome.finished
        except Exception as error:
            explained = self.parts.explain(error)
            if explained is None:
                raise
            raise explained from error
        finally:
            try:
                self.parts.checkpoints.close(patient=patient)
            finally:
                self.parts.profiler.close()
        self._report_checkpoints()
        self._judge(outcome.step)
        self._event(outcome.step, "finished" if outcome.finished else "stopped", {})
        return outcome

    def _steps(self) -> Outcome:
        parts, timetable = self.parts, self.timetable
        pending: PendingTotals | None = None
        evaluation = self._evaluate(self.first_step) if self.evaluation_is_owed else None
        with closing(parts.batches_from(self.first_step)) as batches:
            for step in range(self.first_step + 1, timetable.total_steps + 1):
                is_last = step == timetable.total_steps
                # --- one optimizer step
                parts.seed(step - 1)
                parts.pulse.enter("step", step)
                with parts.profiler.step(step), self._clock.running(step):
                    sums = parts.engine.step(self._micro_batches(batches), parts.learning_rate(step - 1))
                    asked, own_s = parts.supervisor.request(), parts.pulse.own_s()
                    finished = parts.exchange.finish(step, sums, asked, own_s, self._checksum)
                    if not sums.skipped:  # after the exchange: it moves the running statistics
                        parts.average(step)
                    previous, pending = pending, finished
                    totals = previous.read() if previous else None  # on a GPU, the wait for its work is here

                # --- what the step before has left, a step late
                request = self._record(totals) if totals else Request.CONTINUE
                self._report_checkpoints()

                # --- events of this boundary
                evaluation_is_due = timetable.evaluate.fires_after(step) or is_last
                checkpoint_is_due = timetable.checkpoint.fires_after(step) or is_last
                if evaluation_is_due or checkpoint_is_due or request is not Request.CONTINUE:
                    with self._clock.running(step):
                        totals = pending.read()
                    request, pending = max(request, self._record(totals)), None
                stops = request is Request.STOP and not is_last
                # Whoever stops a run may not wait for an evaluation: the next attempt owes it.
                evaluation = self._evaluate(step) if evaluation_is_due and not stops else None
                if checkpoint_is_due or request is not Request.CONTINUE:
                    self._save(step, evaluation, wait=stops or is_last)
                if stops:
                    return Outcome(step, finished=False, evaluation=None)
        if evaluation is None:  # resumed after the last step
            evaluation = self._evaluate(timetable.total_steps)
        return Outcome(max(timetable.total_steps, self.first_step), finished=True, evaluation=evaluation)

    def _micro_batches(self, batches: Iterator[HostBatch]) -> Iterator[MicroBatch]:
        """The micro-batches of one step, each moved to the device when the engine asks for it."""
        self._checksum = 0
        for batch in itertools.islice(self._clock.waiting(batches), self.num_micro_batches):
            self._checksum += batch.checksum
            yield self._clock.copying(self.parts.to_device, batch)

    def _record(self, totals: StepTotals) -> Request:
        """Check a step's totals and write them where they are due; returns what any worker asked for."""
        if not math.isfinite(totals.loss):
            raise DivergedError(totals.step, totals.loss)
        if not math.isfinite(totals.gradient_norm) and not self.parts.engine.skips_overflows:
            problem = f"the gradient's norm of step {totals.step} is {totals.gradient_norm}"
            raise DivergedError(totals.step, totals.gradient_norm, problem)
        self._check_scaling(totals)
        self._clock.add_own(totals.step, totals.own_s)
        for straggler in self._stragglers.add(totals.own_s):
            self._event(totals.step, "straggler", asdict(straggler))
        timetable = self.timetable
        if totals.step % timetable.log_every == 0 or totals.step == timetable.total_steps:
            lap = self._clock.lap(totals.step)
            self._laps.append(lap)
            self._write(
                {
                    "kind": "train",
                    "step": totals.step,
                    "epoch": self._epoch(totals.step),
                    "loss": totals.loss,
                    "top1": totals.top1,
                    "gradient_norm": totals.gradient_norm if math.isfinite(totals.gradient_norm) else None,
                    "sample_ids": totals.checksum,
                    "learning_rate": self.parts.learning_rate(totals.step - 1),
                    "images_per_s": timetable.batch_size / lap.step_s,
                    "step_time_s": lap.step_s,
                    "data_wait_s": lap.input_s,
                    "time_left_s": (timetable.total_steps - totals.step) * lap.step_s,
                    **totals.scaling,
                }
            )
        return totals.request

    def _check_scaling(self, totals: StepTotals) -> None:
        """Raise DivergedError where a loss scaler skips steps at its least scale, or has skipped every step."""
        if not totals.skipped:
            return
        scale, num_skipped = totals.scaling["loss_scale"], totals.scaling["num_skipped"]
        if scale <= LEAST_SCALE:
            problem = f"float16 gradients of step {totals.step} overflow with a loss scale of {scale:g}, the smallest"
        elif totals.step == self.timetable.total_steps and num_skipped >= totals.step:
            problem = f"all {num_skipped} steps were skipped: float16 gradients overflow with a loss scale of {scale:g}"
        else:
            return
        advice = "Use precision bfloat16 or float32, or lower the peak LR"
        raise DivergedError(totals.step, scale, problem, advice, by_samples=False)

    def _evaluate(self, step: int) -> Evaluation:
        self.parts.pulse.enter("evaluate", step)
        started = time.perf_counter()
        evaluation = self.parts.evaluate()
        seconds = time.perf_counter() - started
        if evaluation.num_nonfinite:
            text = "the evaluation after step %d is not finite: %d of %d samples have logits that are not finite"
            log.warning(text, step, evaluation.num_nonfinite, evaluation.num_samples)
        record = {"kind": "eval", "step": step, "epoch": self._epoch(step), **asdict(evaluation), "time_s": seconds}
        self._write(record)
        return evaluation

    def _save(self, step: int, evaluation: Evaluation | None, *, wait: bool) -> None:
        self.parts.pulse.enter("save", step)
        metrics = {}
        if evaluation is not None:
            metrics = {"top1": evaluation.top1, "top5": evaluation.top5, "loss": evaluation.loss}
        self.parts.checkpoints.save(step, wait=wait, metrics=metrics)
        self._report_checkpoints()

    def _report_checkpoints(self) -> None:
        for report in self.parts.checkpoints.poll():
            if isinstance(report, Saved):
                self.parts.supervisor.checkpoint(str(report.path), report.step)

    def _judge(self, step: int) -> None:
        # The first lap holds what happens once: kernels are chosen, memory is found, files are read for the first time.
        verdict = self.parts.judge(self._laps[1:] or self._laps)
        if verdict is not None:
            self._event(step, "verdict", {**verdict.record(), "text": str(verdict)})

    def _event(self, step: int, event: str, detail: dict[str, Any]) -> None:
        self._write({"kind": "event", "step": step, "event": event, "detail": detail})

    def _write(self, record: dict[str, Any]) -> None:
        self.parts.sink.write(record)

    def _epoch(self, step: int) -> float:
        return step * self.timetable.batch_size / self.timetable.num_samples
