"""Runs of a study as Ray tasks. The cluster decides where and how many at a time; all nodes see the storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config.schema import RunConfig
from launcher.exit_codes import ExitCode
from launcher.run.directory import RunDirectory
from launcher.signals import StopSignals
from launcher.study.pool import MakeOrder
from launcher.study.rounds import Job
from launcher.study.training import Answer, Ended, Moment, Order, RunStop, carry_out

if TYPE_CHECKING:
    from launcher.ray_backend.tasks import Tasks

POLL_S = 0.5


def in_a_task(order: Order) -> Ended:
    """Carry out an order in a task of Ray. Stops are requested through files."""
    if _stopping(order.config).exists():  # it waited for resources until now
        return Ended(ExitCode.STOPPED)
    return carry_out(order, RunStop("ignore", announce=False), lambda answer: None)


def _stopping(config: RunConfig) -> Path:
    """A file that exists while the study stops, so that tasks that have not begun do not begin."""
    return Path(config.storage).with_name("STOPPING")


class RayPool:
    """All runs of a round as tasks."""

    def __init__(self, tasks: Tasks[Order, Ended], stop: StopSignals) -> None:
        self._tasks, self._stop = tasks, stop

    def run(self, jobs: Sequence[Job], make_order: MakeOrder) -> Iterator[tuple[Job, Answer | None]]:
        """Carry out jobs; yields each answer, and None twice a second. After a signal, the runs save and stop."""
        waiting = {job.run.name: job for job in jobs}
        for job in jobs:
            _stopping(job.run.config).unlink(missing_ok=True)
            self._tasks.start(make_order(job))
            yield job, Moment(0, None, None)
        while waiting:
            if self._stop.stopped:
                for job in waiting.values():
                    _stopping(job.run.config).touch()
                    _ask_to_stop(job.run.directory)
            ended = self._tasks.ended(POLL_S)
            yield next(iter(waiting.values())), None
            for order, result in ended:
                job = waiting.pop(order.config.name)
                if isinstance(result, Ended):
                    yield job, result
                else:
                    yield job, Ended(ExitCode.HARDWARE, str(result))


def _ask_to_stop(run: RunDirectory) -> None:
    """Write the stop request of the newest attempt, if it runs."""
    attempts = run.attempts()
    if attempts and attempts[-1].ended is None:
        request = run.logs(attempts[-1].number).stop_request
        if not request.exists():
            request.touch()
