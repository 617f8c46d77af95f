"""An attempt: what every worker of it receives, and what training returns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.recovery.policy import Skip
from launcher.run.lease import Claim

ResumeMode = Literal["auto", "never", "must"]


@dataclass(frozen=True)
class AttemptSpec:
    """A started attempt: the same on all of its workers."""

    number: int  # from 1
    first_step: int = 0  # completed steps of `checkpoint` or `memory`
    checkpoint: Path | None = None
    skips: tuple[Skip, ...] = ()
    num_micro_batches: int | None = None  # replaces batch.num_micro_batches: auto
    claim: Claim | None = None  # on the run directory: checked before a checkpoint is committed
    began: float = field(default_factory=time.time)
    memory: tuple[int, int] | None = None  # (step, rank): starts from what this worker has in memory, not on disk


@dataclass(frozen=True)
class AttemptResult:
    """The result of an attempt that did not fail."""

    step: int  # completed steps, saved in a checkpoint
    finished: bool  # whether these are all steps
    measured: Mapping[str, Any] = field(default_factory=dict)  # time_s; top1, ... of the last evaluation
    preempted: bool = False
    trained: bool = True  # False if the run was stopped before an attempt began

    def summary(self) -> dict[str, Any]:
        """As recorded in FINISHED."""
        return {"step": self.step, "finished": self.finished, **self.measured}
