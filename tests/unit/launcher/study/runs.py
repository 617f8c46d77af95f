"""States of runs that were never trained."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.study.plan import Plan
from launcher.study.state import State


def finished(steps: int = 8, seconds: float = 10.0, **metrics: float) -> State:
    """A finished run with a train record and an evaluation at its end, and one in its middle."""
    records = [{"kind": "train", "step": step, "loss": 4.0 / step} for step in (steps // 2, steps)] + [
        {"kind": "eval", "step": steps, **metrics}
    ]
    return State("finished", step=steps, total_steps=steps, seconds=seconds, records=records)


def stopped(step: int, total: int = 8, **metrics: float) -> State:
    """A run that has stopped after an evaluation."""
    return State("stopped", step=step, total_steps=total, records=[{"kind": "eval", "step": step, **metrics}])


def states(plan: Plan, given: Mapping[str, State]) -> dict[str, State]:
    """The states of all runs: `given` by a part of their names, the others wait."""
    found = {}
    for run in plan.runs:
        fitting = [state for part, state in given.items() if part in run.name]
        found[run.name] = fitting[0] if fitting else State("waiting")
    return found
