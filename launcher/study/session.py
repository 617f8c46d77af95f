"""The loop over rounds, and the line of progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from launcher.exit_codes import ExitCode
from launcher.formatting import count, first_line
from launcher.signals import StopSignals
from launcher.study import state as states_of
from launcher.study.line import Line
from launcher.study.plan import Plan, PlannedRun
from launcher.study.rounds import Job, Round, has_reached, next_round
from launcher.study.state import ENDED, State
from launcher.study.training import Answer, Ended, Moment, Order


class Runner(Protocol):
    """Carries out jobs somewhere: `launcher.study.pool.Pool`."""

    def run(self, jobs: Sequence[Job], make_order: Callable[[Job], Order]) -> Iterator[tuple[Job, Answer | None]]:
        """Carry out jobs; yields their answers, and None now and then."""
        ...


@dataclass
class Outcome:
    """How a session ended: the last round, the states of all runs, and the runs that failed in it, first one first."""

    round: Round
    states: dict[str, State]
    failures: dict[str, Ended] = field(default_factory=dict)


def carry_out(plan: Plan, only: Sequence[PlannedRun], runner: Runner, stop: StopSignals, size: int) -> Outcome:
    """Train what is not finished yet, round after round. `only`: the runs of this session; others are left as they are.

    A run that failed before is tried again; one that fails now is not, and the others go on. `size`: runs at a time.
    """
    states = read_states(plan)
    names = {run.name for run in only}
    states |= {name: replace(state, status="stopped") for name, state in states.items()
               if state.status == "failed" and name in names}  # fmt: skip
    failures: dict[str, Ended] = {}
    line = Line(plan, states, size)
    is_first = True
    while True:
        now = next_round(plan, states)
        jobs = [job for job in now.jobs if job.run.name in names]
        if is_first and not jobs:
            line.say(_nothing_to_train(plan, only, states))
        if not jobs or stop.stopped:
            break
        is_first = False
        line.begin(now, jobs)
        for job, answer in runner.run(jobs, lambda job: Order(job.run.config, job.pause_at)):
            if isinstance(answer, Moment):
                line.moments[job.run.name] = answer
            elif isinstance(answer, Ended):
                state = states[job.run.name] = _ended(job, answer, stop).as_result(plan.may_diverge)
                line.moments.pop(job.run.name, None)
                if state.status == "failed":
                    failures[job.run.name] = answer
                    line.say(f"{job.run.name} failed: {first_line(state.reason)}")
            line.show()
        line.close()
    return Outcome(now, states, failures)


def read_states(plan: Plan) -> dict[str, State]:
    """The states of all runs by their directories, by name."""
    return {run.name: states_of.read(run).as_result(plan.may_diverge) for run in plan.runs}


def _nothing_to_train(plan: Plan, only: Sequence[PlannedRun], states: Mapping[str, State]) -> str:
    done = sum(states[run.name].status in ENDED for run in only)
    of = min(len(only), plan.num_runs)
    chooser = "halving" if plan.file.study.tune is None else "the tuning"  # without either, `done` is all
    others = "" if done >= of else f", and {chooser} does not let the others go on now"
    return f"{min(done, of)} of {count(of, 'run')} finished already{others}: nothing to train"


def _ended(job: Job, answer: Ended, stop: StopSignals) -> State:
    """The state of a run that has just ended; a failure in this session, unless it did what it was asked for."""
    state = states_of.read(job.run)
    is_paused = job.pause_at is not None and has_reached(state, job.pause_at)
    if answer.code == ExitCode.OK or is_paused or (stop.stopped and not answer.reason):
        return state
    reason = answer.reason or f"it was stopped by another process at step {state.step}"
    return replace(state, status="failed", reason=reason, code=answer.code)
