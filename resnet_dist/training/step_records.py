"""What the totals of each step say: whether training has diverged, and the records about the step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from resnet_dist.telemetry.bottleneck import StepTimes
from resnet_dist.telemetry.memory import used_bytes
from resnet_dist.telemetry.step_timer import StepTimer
from resnet_dist.telemetry.step_totals import StepTotals
from resnet_dist.telemetry.stragglers import Stragglers
from resnet_dist.telemetry.time_left import TimeLeft
from resnet_dist.training.divergence import check_finite
from resnet_dist.training.parts import Timetable, TrainerParts

Record = Mapping[str, object]


class StepRecords:
    """Takes the totals of each step, in the order of the steps: checks and counts them, and writes records."""

    def __init__(
        self,
        parts: TrainerParts,
        timetable: Timetable,
        timer: StepTimer,
        left: TimeLeft,
        write: Callable[[Record], object],
    ) -> None:
        """`timer` and `left` are the trainer's; `write` takes a record."""
        self._parts, self._timetable, self._timer, self._left, self._write = parts, timetable, timer, left, write
        self._stragglers = Stragglers()
        self.windows: list[StepTimes] = []  # between train records

    def add(self, totals: StepTotals) -> None:
        """Check and count a step's totals, and log them if due. Raises DivergedError and LedgerError."""
        parts, step = self._parts, totals.step
        check_finite(totals, self._timetable.total_steps, skips_overflows=parts.engine.skips_overflows)
        if parts.bad is not None:
            parts.bad.num_samples += totals.num_left_out
        self._timer.add_local(step, totals.local_step_times_s)
        for straggler in self._stragglers.add(totals.local_step_times_s):
            self._write(event(step, "straggler", asdict(straggler)))
        if parts.ledger is not None:
            for epoch in parts.ledger.add(step, totals.tallies):
                self._write(event(step, "epoch_complete", epoch))
        if step % self._timetable.log_every == 0 or step == self._timetable.total_steps:
            self.log(totals)

    def log(self, totals: StepTotals) -> None:
        """End a logging window, and write its train record."""
        window = self._timer.end_window(totals.step)
        self.windows.append(window)
        self._write(
            {
                "kind": "train",
                "step": totals.step,
                "epoch": self._timetable.epoch(totals.step),
                "loss": totals.loss,
                "top1": totals.top1,
                "gradient_norm": totals.gradient_norm if math.isfinite(totals.gradient_norm) else None,
                "sample_ids": totals.checksum,
                "learning_rate": self._parts.learning_rate(totals.step - 1),
                "images_per_s": self._timetable.batch_size / window.step_s,
                "step_time_s": window.step_s,
                "data_wait_s": window.input_s,
                "time_left_s": self._left.seconds(),
                **({} if self._parts.bad is None else {"num_left_out": self._parts.bad.num_samples}),
                **totals.scaling,
                **_summary(totals.trust_ratios),
                **used_bytes(),
            }
        )


def event(step: int, name: str, detail: Mapping[str, object]) -> Record:
    """The record of an event."""
    return {"kind": "event", "step": step, "event": name, "detail": detail}


def _summary(trust_ratios: Sequence[float]) -> dict[str, float]:
    """The part of a train record about the trust ratios of the layers; empty without any."""
    if not trust_ratios:
        return {}
    middle = statistics.median(trust_ratios)
    return {"trust_ratio_min": min(trust_ratios), "trust_ratio_median": middle, "trust_ratio_max": max(trust_ratios)}
