"""The bottleneck of a run: input, copies, compute, communication or a straggler; and its FLOP/s against the device's.

Computed from times that the trainer measures anyway, averaged over the steps of a logging window:

    step          |-- input --|-- copies --|------ compute ------|-- communication --|
    local time    |<------------ of each worker, by rank ------->|

A worker's local step time ends with its last gradient and excludes waits for other workers. The part of a step that
the slowest worker's local time does not cover is communication (and the optimizer's update, which is short). The time
by which the slowest worker exceeds the median of all workers is the straggler's.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_STRAGGLER_FROM = 1.1  # times the median: from here on, the slowest worker is reported as a straggler


@dataclass(frozen=True)
class StepTimes:
    """Means over a logging window, in seconds. Input and copies are those of this worker, which is rank 0."""

    num_steps: int
    step_s: float
    local_step_times_s: tuple[float, ...]  # by rank; 0.0, or empty, if unknown
    input_s: float  # waits for decoded images
    copies_s: float  # moving images to the device and normalising them, by the host's clock
    last_step: int = 0  # of the window; step 1 is the first


@dataclass(frozen=True)
class StepBottleneck:
    """The fractions of a step's time, which add up to 1, and the largest of them."""

    bound_by: str  # input | copies | compute | communication | straggler
    input: float
    copies: float
    compute: float
    communication: float
    straggler: float
    straggler_rank: int | None
    step_time_s: float
    flops_utilisation: float | None  # model FLOP/s divided by the device's peak; None if unknown
    peak: str  # source of the peak
    no_peak: str = ""  # why the peak is not known

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {getattr(self, name):.0%}" for name in ("input", "copies", "compute", "communication", "straggler")
        )
        rank = f" (rank {self.straggler_rank})" if self.straggler_rank is not None else ""
        text = f"bound by {self.bound_by}{rank}: {parts}"
        if self.no_peak:
            return f"{text}; model FLOPs not compared with the peak: {self.no_peak}"
        if self.flops_utilisation is None:
            return text
        return f"{text}; model FLOPs {self.flops_utilisation:.0%} of {self.peak}"

    def record(self) -> dict[str, object]:
        """The fields and the text, for JSON."""
        return {**asdict(self), "text": str(self)}


def _mean(windows: Sequence[StepTimes], values: Sequence[float]) -> float:
    """The mean of one value per window, weighted by the number of steps."""
    num_steps = sum(window.num_steps for window in windows)
    return sum(value * window.num_steps for value, window in zip(values, windows, strict=True)) / num_steps


def classify(
    windows: Sequence[StepTimes],
    flops_per_s: float | None = None,
    peak: tuple[float, str] | None = None,
    no_peak: str = "",
) -> StepBottleneck | None:
    """The bottleneck over `windows`; None if they have no steps.

    flops_per_s    FLOPs of the model on one worker, forward and backward, for one step; at one step per second
    peak           FLOP/s of a worker's device, and the source of that number
    no_peak        without `peak`: why it is not known
    """
    if not any(window.num_steps for window in windows):
        return None
    step_s = _mean(windows, [window.step_s for window in windows])
    timed = [window for window in windows if window.local_step_times_s]  # a GPU's first steps have no times
    by_rank = [_mean(timed, times) for times in zip(*(window.local_step_times_s for window in timed), strict=True)]
    slowest_s = min(max(by_rank, default=0.0), step_s) if all(by_rank) else 0.0
    # If the local times are unknown, everything that is neither input nor copies counts as compute.
    busy_s = slowest_s or step_s
    input_s = min(_mean(windows, [window.input_s for window in windows]), busy_s)
    copies_s = min(_mean(windows, [window.copies_s for window in windows]), busy_s - input_s)
    straggler_s, straggler = 0.0, None
    if len(by_rank) > 1 and slowest_s:
        typical_s = statistics.median(by_rank)
        if slowest_s > _STRAGGLER_FROM * typical_s:
            straggler, straggler_s = by_rank.index(max(by_rank)), slowest_s - typical_s
            input_s, copies_s = min(input_s, typical_s), min(copies_s, max(typical_s - input_s, 0.0))
    if len(by_rank) == 1:
        busy_s = step_s  # no other worker to wait for: the rest of the step is the optimizer's update
    seconds = {
        "input": input_s,
        "copies": copies_s,
        "compute": busy_s - straggler_s - input_s - copies_s,
        "communication": step_s - busy_s,
        "straggler": straggler_s,
    }
    utilisation = None if flops_per_s is None or peak is None else flops_per_s / step_s / peak[0]
    if utilisation is not None and utilisation > 1:  # the peak was measured while the CPU was busy with other work
        utilisation = None
    return StepBottleneck(
        bound_by=max(seconds, key=lambda name: seconds[name]),
        **{name: part_s / step_s for name, part_s in seconds.items()},
        straggler_rank=straggler,
        step_time_s=step_s,
        flops_utilisation=utilisation,
        peak="" if peak is None else peak[1],
        no_peak=no_peak if peak is None else "",
    )
