"""The training loop."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace

from resnet_dist.checkpoint.content import CheckpointContent
from resnet_dist.data.ledger import Tallies, added
from resnet_dist.data.loader import HostBatch
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.telemetry.step_timer import StepTimer
from resnet_dist.telemetry.step_totals import PendingTotals, StepSums, StepTotals
from resnet_dist.telemetry.time_left import TimeLeft
from resnet_dist.training.evaluate import Evaluation
from resnet_dist.training.parts import LoopTimes, Outcome, Timetable, TrainerParts
from resnet_dist.training.step_records import StepRecords, event
from resnet_dist.training.survivor import LastStep, Start
from resnet_dist.training.target import Target

_NO_TALLIES: Tallies = {}

log = logging.getLogger(__name__)


class Trainer:
    """Runs the steps after `first_step` to the end of the timetable, or until any worker is asked to stop.

    The totals of a step are read after the next step has been started, so that the host never waits for the device.
    A stop request therefore takes effect at the second step boundary after it at the latest.
    """

    def __init__(
        self,
        parts: TrainerParts,
        timetable: Timetable,
        num_micro_batches: int,
        first_step: int = 0,
        evaluate_first: bool = False,
        skipped: tuple[tuple[int, int], ...] = (),
        target: Target | None = None,
        start: Start | None = None,
    ) -> None:
        self.parts = parts
        self.timetable = timetable
        self.num_micro_batches = num_micro_batches
        self.first_step = first_step
        self.evaluate_first = evaluate_first  # the previous attempt stopped before or during that of `first_step`
        self.skipped = skipped  # [first, end) steps of the stream that are left out, for the record
        self.target = target  # the first evaluation that reaches it ends the run
        self._start = Start() if start is None else start
        self._last = LastStep(first_step, self._start, parts.engine, parts.sink, parts.bad)
        self._timer = StepTimer()
        self._checksum, self._tallies, self._num_left_out = 0, _NO_TALLIES, 0
        self._evaluation_s, self._saving_s, self._waiting_s = 0.0, 0.0, 0.0
        self._late: Mapping[str, object] | None = None  # the eval record that waits for those beside training
        self._step_ended, self._stalled_s = 0.0, 0.0  # of evaluations and saves, until the last step ended
        self._left = TimeLeft(
            timetable.total_steps,
            evaluate=timetable.evaluate,
            checkpoint=timetable.checkpoint,
            first_step=first_step,
            resolutions=timetable.resolutions,
            evaluation_steps=timetable.evaluation_steps,
            evaluates_first=evaluate_first,
        )
        self._records = StepRecords(parts, timetable, self._timer, self._left, self._last.write)

    def fit(self) -> Outcome:
        """Train; returns on every worker after the same step.

        Raises DivergedError if the loss or the gradient is not finite (no checkpoint contains such a step), and
        OutOfMemory.
        """
        timetable, began = self.timetable, time.perf_counter()
        started: dict[str, object] = {
            "total_steps": timetable.total_steps,
            "batch_size": timetable.batch_size,
            "num_samples": timetable.num_samples,
        }
        if self.skipped:
            started["skipped_steps_of_the_stream"] = [list(run) for run in self.skipped]
        if self._start.from_memory:
            started["from_memory"] = True
        self.parts.sink.write(event(self.first_step, "started", started))
        for record in self.parts.unwritten(self._start.records):
            self.parts.sink.write(record)
        patient = False
        try:
            outcome = self._steps()
            patient = outcome.finished
            if patient:
                self._finish_evaluations(outcome.step)
        except Exception as error:
            translated = self.parts.translate_oom(error)
            if translated is None:
                raise
            raise translated from error
        finally:
            with ExitStack() as at_end:  # all of it is called, whatever fails
                at_end.callback(self.parts.beside.close)
                if self.parts.profiler is not None:
                    at_end.callback(self.parts.profiler.close)
                at_end.callback(self.parts.release)
                closing_began = time.perf_counter()
                self.parts.checkpoints.close(patient=patient)
                self._saving_s += time.perf_counter() - closing_began
        self.parts.checkpoints.poll()
        # The first window includes one-time work: choosing kernels, allocating memory, filling file caches.
        bottleneck = self.parts.classify(self._records.windows[1:] or self._records.windows)
        if bottleneck is not None:
            self._event(outcome.step, "bottleneck", bottleneck.record())
        if outcome.reached is not None and self.target is not None and outcome.evaluation is not None:
            name = "target_reached" if outcome.reached else "target_missed"
            self._event(outcome.step, name, self.target.detail(outcome.evaluation))
        self._event(outcome.step, "finished" if outcome.finished else "stopped", {})
        training_s = time.perf_counter() - began - self._evaluation_s - self._saving_s
        return replace(outcome, times=LoopTimes(training_s, self._evaluation_s, self._saving_s, self._waiting_s))

    def state(self) -> CheckpointContent | None:
        """A copy, on the CPU, of the state after the last completed step. To be called after `fit` has raised.

        It is what a checkpoint of that step contains, and what a start from memory needs besides (see `survivor`); the
        step's totals are recorded. None without a completed step; if a total is not finite or the error came in the
        middle of an update; on a GPU; and for an engine that does not update last, such as ZeRO. Never raises an error,
        which would hide that of training.
        """
        last, content = self._last, self.parts.content
        try:
            while last.is_usable() and last.unread:
                self._record(next(iter(last.unread.values())).read())
            step = last.step
            if content is None or step is None or not last.is_usable() or self.parts.beside.has_lost(step):
                return None
            return last.copied(content(step, last.metrics))
        except Exception as error:
            log.warning("the state of step %s is not kept: %s: %s", last.step, type(error).__name__, error)
            return None

    def _steps(self) -> Outcome:
        parts, timetable = self.parts, self.timetable
        pending: PendingTotals | None = None
        parts.prepare()
        self._step_ended = time.perf_counter()
        if self.evaluate_first:
            parts.stages.begin("evaluating the checkpoint")
        beside = self.evaluate_first and self._goes_beside(self.first_step, stopping=False)
        evaluation = self._evaluate(self.first_step) if self.evaluate_first and not beside else None
        is_last, reaches = self.first_step == timetable.total_steps, self._reaches(evaluation)
        if self._start.from_memory and (
            beside or timetable.checkpoint.fires_after(self.first_step) or reaches or is_last
        ):
            self._save(self.first_step, wait=reaches or is_last)
        if reaches:  # ended between this evaluation and its record as finished
            return self._finished(self.first_step, evaluation)
        parts.stages.begin("first step" if self.first_step < timetable.total_steps else None)
        with closing(parts.batches_from(self.first_step)) as batches:
            for step in range(self.first_step + 1, timetable.total_steps + 1):
                is_last = step == timetable.total_steps
                # --- one optimizer step
                parts.seed(step - 1)
                parts.liveness.enter("step", step)
                profiled = nullcontext() if parts.profiler is None else parts.profiler.step(step)
                with profiled, self._timer.running(step):
                    parts.layers.begin(step)
                    sums, update = self._gradients(self._micro_batches(batches), parts.learning_rate(step - 1))
                    parts.layers.reduce()
                    asked, local_s = parts.supervisor.stop_requested(), parts.liveness.local_step_time_s()
                    tallies = [] if parts.ledger is None else parts.ledger.sums(step, self._tallies)
                    finished = parts.exchange.finish(
                        step, sums, asked, local_s, self._checksum, tallies, self._num_left_out, update
                    )
                    if not finished.sums.skipped:  # after the exchange, which updates the running statistics
                        parts.average(step)
                    self._last.complete(step, finished)
                    of_layers = parts.layers.end(step, finished.sums)
                    previous, pending = pending, finished
                    totals = previous.read() if previous else None  # on a GPU, waits for the previous step

                self._end_step(step)

                # --- totals of the previous step
                stop = self._record(totals) if totals else False
                self._report_bad_images(step)
                if of_layers is not None:
                    self._last.write(of_layers)
                parts.checkpoints.poll()
                parts.beside.poll()

                # --- events of this step boundary
                evaluation_is_due = timetable.evaluate.fires_after(step) or is_last
                checkpoint_is_due = timetable.checkpoint.fires_after(step) or is_last
                if evaluation_is_due or checkpoint_is_due or stop:
                    with self._timer.running(step):
                        totals = pending.read()
                    stop, pending = self._record(totals) or stop, None
                stop = stop and not is_last
                # A stop request does not wait for an evaluation: the next attempt begins with it.
                beside = evaluation_is_due and self._goes_beside(step, stopping=stop)
                evaluation = self._evaluate(step) if evaluation_is_due and not (stop or beside) else None
                ends_early = self._reaches(evaluation) and not is_last
                if (ends_early or stop) and step % timetable.log_every and totals is not None:
                    self._records.log(totals)
                if checkpoint_is_due or beside or stop or ends_early:
                    self._save(step, wait=stop or is_last or ends_early)
                if stop:
                    return Outcome(step, finished=False, evaluation=None)
                if ends_early:
                    return self._finished(step, evaluation)
        if evaluation is None:  # resumed after the last step
            evaluation = self._evaluate(timetable.total_steps)
        return self._finished(max(timetable.total_steps, self.first_step), evaluation)

    def _end_step(self, step: int) -> None:
        """Note what `step` has taken, without the evaluations and saves since the step before."""
        now, stalled_s = time.perf_counter(), self._evaluation_s + self._saving_s
        self._left.add_step(step, now - self._step_ended - (stalled_s - self._stalled_s))
        self._step_ended, self._stalled_s = now, stalled_s
        if step == self.first_step + 1:
            self.parts.stages.begin(None)

    def _goes_beside(self, step: int, *, stopping: bool) -> bool:
        """Whether the evaluation after `step` is one of a checkpoint; the last one is done by the idle workers."""
        began = time.perf_counter()
        taken = step < self.timetable.total_steps and self.parts.beside.take(step, stopping=stopping)
        if taken:
            self._left.add_evaluation(time.perf_counter() - began)
        self._last.beside = taken
        return taken

    def _finish_evaluations(self, step: int) -> None:
        self.parts.liveness.enter("evaluate", step)
        began = time.perf_counter()
        self.parts.beside.finish(self.parts.liveness.beat, self.parts.supervisor.stop_requested)
        self._waiting_s = time.perf_counter() - began
        self._evaluation_s += self._waiting_s
        if self._late is not None:
            self._last.write(self._late)

    def _reaches(self, evaluation: Evaluation | None) -> bool:
        return self.target is not None and evaluation is not None and self.target.is_reached(evaluation.record())

    def _finished(self, step: int, evaluation: Evaluation | None) -> Outcome:
        return Outcome(step, True, evaluation, None if self.target is None else self._reaches(evaluation))

    def _gradients(
        self, micro_batches: Iterator[MicroBatch], learning_rate: float
    ) -> tuple[StepSums, Callable[[StepSums], StepSums]]:
        """The sums of a step, and its update, which comes after their exchange (or has been made)."""
        engine = self._last.engine
        if engine is None:
            return self.parts.engine.step(micro_batches, learning_rate), lambda sums: sums

        def update(sums: StepSums) -> StepSums:
            self._last.begin_update()
            return engine.update(sums, learning_rate)

        return engine.gradients(micro_batches), update

    def _micro_batches(self, batches: Iterator[HostBatch]) -> Iterator[MicroBatch]:
        """The micro-batches of one step, each moved to the device when the engine requests it."""
        self._checksum, self._tallies, self._num_left_out = 0, _NO_TALLIES, 0
        for batch in itertools.islice(self._timer.waiting(batches), self.num_micro_batches):
            self._checksum += batch.checksum
            self._tallies = added(self._tallies, batch.tallies)
            if batch.left_out is not None:
                self._num_left_out += batch.left_out.num
            yield self._timer.copying(self.parts.to_device, batch)

    def _record(self, totals: StepTotals) -> bool:
        """Check a step's totals and log them if due; returns whether any worker was asked to stop."""
        with self._last.recording(totals.step):
            self._records.add(totals)
        return totals.stop_requested

    def _evaluate(self, step: int) -> Evaluation:
        self.parts.liveness.enter("evaluate", step)
        started = time.perf_counter()
        evaluation = self.parts.evaluate(step)
        seconds = time.perf_counter() - started
        self._evaluation_s += seconds
        self._left.add_evaluation(seconds)
        self._report_bad_images(step)
        self._last.metrics = {"top1": evaluation.top1, "top5": evaluation.top5, "loss": evaluation.loss}
        self._last.keep()
        if evaluation.num_nonfinite:
            text = "the evaluation after step %d is not finite: %d of %d samples have logits that are not finite"
            log.warning(text, step, evaluation.num_nonfinite, evaluation.num_samples)
        elif wrong := [name for name, value in evaluation.metrics.items() if not math.isfinite(value)]:
            log.warning("the metric %s is not finite in the evaluation after step %d", ", ".join(wrong), step)
        where = {"kind": "eval", "step": step, "epoch": self.timetable.epoch(step)}
        record = {**where, **evaluation.record(), "time_s": seconds}
        if self.parts.beside.in_use():  # those of earlier steps come first: a chart may refuse to go back
            self._late = record
        else:
            self._last.write(record)
        return evaluation

    def _save(self, step: int, *, wait: bool) -> None:
        self.parts.liveness.enter("save", step)
        started = time.perf_counter()
        self.parts.checkpoints.save(step, wait=wait, metrics=self._last.metrics)
        seconds = time.perf_counter() - started
        self._saving_s += seconds
        self._left.add_save(seconds)
        self.parts.checkpoints.poll()

    def _report_bad_images(self, step: int) -> None:
        for detail in [] if self.parts.bad is None else self.parts.bad.take_new():
            self._event(step, "bad_image", detail)

    def _event(self, step: int, name: str, detail: Mapping[str, object]) -> None:
        self._last.write(event(step, name, detail))
