"""`python -m launcher.recovery.requeue RUN CODE MOST`: whether the script of a SLURM job requeues it.

It prints one line: the job's exit code, `requeue` or `end`, and the reason. RUN is the run directory, CODE the run's
exit code, MOST `cluster.max_requeues`. A restart counts towards MOST if a fault caused it (76), or if no checkpoint was
added since the previous restart. So a run that is longer than its walltime may be restarted any number of times.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.exit_codes import ExitCode
from launcher.formatting import count, first_line
from launcher.recovery import root_cause
from launcher.run.directory import RunDirectory, current_submission
from launcher.run.progress import newest_step
from launcher.run.record_types import read_lines, utc_now
from resnet_dist.checkpoint.disk import storage_errors
from resnet_dist.telemetry import json_lines


@dataclass(frozen=True)
class Requeue:
    """A line of requeues.jsonl: one restart of a submission."""

    submission: str
    time: str  # ISO 8601, UTC
    exit_code: int
    step: int  # of the newest checkpoint
    counts: bool  # towards cluster.max_requeues


@dataclass(frozen=True)
class Decision:
    """What a job's script does after its run has ended with a code that allows a restart."""

    exit_code: int  # of the job
    requeue: bool
    reason: str  # for a person

    def __str__(self) -> str:
        return f"{self.exit_code} {'requeue' if self.requeue else 'end'} {self.reason}"


def decide(run: RunDirectory, exit_code: int, most: int) -> Decision:
    """Whether to requeue this process's submission, and record it if so. Raises StorageError."""
    failure = run.fatal()
    if failure is not None and root_cause.ends_submission(failure):
        reason = f"a restart would fail in the same way: {first_line(failure.message)}"
        return Decision(failure.exit_code, False, reason)
    earlier = [one for one in read_lines(run.requeues, Requeue) if one.submission == current_submission()]
    step = newest_step(run)
    counts = exit_code == ExitCode.HARDWARE or step <= max((one.step for one in earlier), default=0)
    counted = sum(one.counts for one in earlier) + counts
    if counted > most or most == 0:
        allowed = f"cluster.max_requeues allows {count(most, 'restart')} after faults or without progress"
        return Decision(exit_code, False, f"{allowed}. Submit the script again to resume")
    requeue = Requeue(current_submission(), utc_now(), exit_code, step, counts)
    with storage_errors(run.requeues):
        run.path.mkdir(parents=True, exist_ok=True)
        json_lines.append(run.requeues, asdict(requeue))
    used = f"{counted} of at most {most} after faults or without progress"
    return Decision(exit_code, True, f"restart {len(earlier) + 1}; {used}")


if __name__ == "__main__":
    folder, code, limit = sys.argv[1:]
    print(decide(RunDirectory.at(Path(folder)), int(code), int(limit)))
