"""What holds a run up: input, copies, compute, communication or one slow worker; and how far it is from the hardware.

All of it from times that the trainer takes anyway, means over the steps of a lap:

    step        |-- input --|-- copies --|------ own compute ------|-- the rest --|
    own_s       |<------------ of each worker, by rank ----------->|

`own_s` ends with a worker's last gradient and leaves out its waits for others, so what the slowest worker's own_s does
not explain is communication (and, small, the optimizer); what the slowest takes more than the others is a straggler's.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# A worker that needs a tenth more than the median costs all of them a tenth: worth a name in the verdict.
_STRAGGLER_FROM = 1.1


@dataclass(frozen=True)
class StepTimes:
    """Means over some steps, in seconds. The last two are this worker's, which is rank 0."""

    num_steps: int
    step_s: float
    own_s: tuple[float, ...]  # by rank; 0.0 where it is not known
    input_s: float  # waited for images
    copies_s: float  # moved them to the device and normalised them, on the host's clock


@dataclass(frozen=True)
class Verdict:
    """Parts of a step's time, which add up to 1, and what they mean."""

    bound_by: str  # input | copies | compute | communication | straggler
    input: float
    copies: float
    compute: float
    communication: float
    straggler: float
    straggler_rank: int | None
    step_time_s: float
    flops_utilisation: float | None  # model FLOPs per second / what the device can do; None where that is not known
    peak: str  # what "can do" is taken from

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {getattr(self, name):.0%}" for name in ("input", "copies", "compute", "communication", "straggler")
        )
        who = f" (rank {self.straggler_rank})" if self.straggler_rank is not None else ""
        text = f"bound by {self.bound_by}{who}: {parts}"
        if self.flops_utilisation is None:
            return text
        return f"{text}; model FLOPs {self.flops_utilisation:.0%} of {self.peak}"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def _mean_by_rank(laps: Sequence[StepTimes]) -> list[float]:
    """Each worker's own time, over laps in which it is known: a GPU's first steps have none yet."""
    num_steps = sum(lap.num_steps for lap in laps)
    return [
        sum(own_s * lap.num_steps for own_s, lap in zip(times, laps, strict=True)) / num_steps
        for times in zip(*(lap.own_s for lap in laps), strict=True)
    ]


def judge(
    laps: Sequence[StepTimes], flops_per_s: float | None = None, peak: tuple[float, str] | None = None
) -> Verdict | None:
    """The verdict over `laps`; None where there is no step to judge.

    flops_per_s    of the model's mathematics on one worker, forward and backward, at one step a second
    peak           FLOP/s that a worker's device can do, and where that number is from
    """
    num_steps = sum(lap.num_steps for lap in laps)
    if not num_steps:
        return None

    def mean(values: Sequence[float]) -> float:
        return sum(value * lap.num_steps for value, lap in zip(values, laps, strict=True)) / num_steps

    step_s = mean([lap.step_s for lap in laps])
    by_rank = _mean_by_rank([lap for lap in laps if lap.own_s])
    own_s = max(by_rank, default=0.0) if all(by_rank) else 0.0
    own_s = min(own_s, step_s)
    # Where the workers' own times are not known, all that is neither input nor copies counts as compute.
    busy_s = own_s or step_s
    input_s = min(mean([lap.input_s for lap in laps]), busy_s)
    copies_s = min(mean([lap.copies_s for lap in laps]), busy_s - input_s)
    straggler_s, straggler = 0.0, None
    if len(by_rank) > 1 and own_s:
        typical_s = statistics.median(by_rank)
        if own_s > _STRAGGLER_FROM * typical_s:
            straggler, straggler_s = by_rank.index(max(by_rank)), own_s - typical_s
            input_s, copies_s = min(input_s, typical_s), min(copies_s, max(typical_s - input_s, 0.0))
    if len(by_rank) == 1:
        busy_s = step_s  # nobody to wait for: the rest is the optimizer's
    seconds = {
        "input": input_s,
        "copies": copies_s,
        "compute": busy_s - straggler_s - input_s - copies_s,
        "communication": step_s - busy_s,
        "straggler": straggler_s,
    }
    utilisation = None if flops_per_s is None or peak is None else flops_per_s / step_s / peak[0]
    if utilisation is not None and utilisation > 1:  # a CPU that was busy with something else while it was measured
        utilisation = None
    return Verdict(
        bound_by=max(seconds, key=lambda name: seconds[name]),
        **{name: part_s / step_s for name, part_s in seconds.items()},
        straggler_rank=straggler,
        step_time_s=step_s,
        flops_utilisation=utilisation,
        peak="" if peak is None else peak[1],
    )
