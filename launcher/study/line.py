"""The line of progress of a study, and how long it takes."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence

from launcher.study.plan import Plan
from launcher.study.rounds import Job, Round
from launcher.study.state import ENDED, State
from launcher.study.training import Moment
from resnet_dist.progress_line import in_time

LINE_EVERY_S = 30.0  # without a terminal
FEW = 4  # running runs whose progress is shown one by one


class Line:
    """On a terminal one line that changes, else a line now and then.

    `moments` are where the running runs are; `states` those of all runs. The caller changes both.
    """

    def __init__(self, plan: Plan, states: Mapping[str, State], size: int) -> None:
        self.moments: dict[str, Moment] = {}
        self._plan, self._states, self._size = plan, states, size
        self._jobs: Sequence[Job] = ()
        self._is_last = True
        self._terminal = sys.stdout.isatty()
        self._shown, self._shown_at = "", 0.0

    def begin(self, now: Round, jobs: Sequence[Job]) -> None:
        """A round begins, of which these jobs are done here."""
        self._jobs, self._is_last = jobs, now.is_last

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._clear()
        print(text, flush=True)

    def show(self) -> None:
        """Print the line if it has changed."""
        text, now = self.text(), time.monotonic()
        if self._terminal:  # a line that wraps cannot be cleared
            text = text[: shutil.get_terminal_size().columns - 1]
        if text != self._shown and (self._terminal or now - self._shown_at >= LINE_EVERY_S):
            self._clear()
            print(text, end="" if self._terminal else "\n", flush=True)
            self._shown, self._shown_at = text, now

    def close(self) -> None:
        """Print how the round ended."""
        self._clear()
        print(self.text(), flush=True)
        self._shown = ""

    def text(self) -> str:
        """Done, running, failed and stopped runs, how far the running ones are, and the time left."""
        statuses = [self._states[run.name].status for run in self._plan.runs if run.name not in self.moments]
        done = sum(status in ("finished", "diverged") for status in statuses)
        left = time_left_s(self._plan, self._jobs, self._states, self.moments, self._size)
        clock = "time left unknown" if left is None else f"{in_time(left)} left"
        parts = [f"{done} of {self._plan.num_runs} runs done", f"{len(self.moments)} running{self._progress()}"]
        parts.append(f"{statuses.count('failed')} failed")
        if stopped := statuses.count("stopped"):
            parts.append(f"{stopped} stopped")
        parts += [clock if self._is_last else f"{clock} in this round"]
        return f"{self._plan.file.study.name}: {', '.join(parts)}"

    def _progress(self) -> str:
        """The part of their steps that the running runs have done: ` (60%, 40%)`."""
        done = [100 * one.step // one.total_steps for one in self.moments.values() if one.total_steps]
        if len(done) > FEW:
            return f" ({min(done)}% to {max(done)}%)"
        return f" ({', '.join(f'{percent}%' for percent in done)})" if done else ""

    def _clear(self) -> None:
        if self._terminal and self._shown:
            print(f"\r{' ' * len(self._shown)}\r", end="")
            self._shown = ""


def time_left_s(
    plan: Plan, jobs: Sequence[Job], states: Mapping[str, State], moments: Mapping[str, Moment], size: int
) -> float | None:
    """Seconds until `jobs` are done, `size` at a time; None before anything was measured.

    A run takes as long as the finished runs of its combination on average, else of all combinations, else as the
    running ones will.
    """
    finished: dict[str, list[float]] = {}
    for run in plan.runs:
        if states[run.name].status == "finished":
            finished.setdefault(run.point.text(), []).append(states[run.name].seconds)
    running = {name: moment.time_left_s for name, moment in moments.items() if moment.time_left_s is not None}
    known = [seconds for group in finished.values() for seconds in group]
    if not known:
        known = [whole for name, moment in moments.items() if (whole := _whole_s(moment)) is not None]
    if not known:
        return None

    def left_s(job: Job) -> float:
        state = states[job.run.name]
        if state.status in ENDED:
            return 0.0
        if job.run.name in running and job.pause_at is None:
            return running[job.run.name]
        measured = finished.get(job.run.point.text(), known)
        done = state.step / state.total_steps if state.total_steps else 0.0
        until = 1.0 if job.pause_at is None else float(job.pause_at)
        return max(until - done, 0.0) * sum(measured) / len(measured)

    each = [left_s(job) for job in jobs]
    return max(sum(each) / size, max(each, default=0.0))


def _whole_s(moment: Moment) -> float | None:
    """Seconds of the whole run, by the time that is left; None if that is unknown."""
    if moment.time_left_s is None or not moment.total_steps or moment.step >= moment.total_steps:
        return None
    return moment.time_left_s * moment.total_steps / (moment.total_steps - moment.step)
