"""Which runs come next. A pure function of the plan and of how its runs stand, so a study resumes where it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from launcher.study.load import smallest_is_best
from launcher.study.plan import Plan, PlannedRun, Point
from launcher.study.state import ENDED, State


@dataclass(frozen=True)
class Job:
    """A run to train: to its end, or until the fraction `pause_at` of its steps."""

    run: PlannedRun
    pause_at: Fraction | None = None


@dataclass(frozen=True)
class Round:
    """The jobs to do now, and which runs count.

    `results` are the runs of the final table: those of a tuning are the best ones only. `dropped` are the combinations
    that successive halving has stopped, with the fraction of the run.
    """

    jobs: tuple[Job, ...]
    results: tuple[PlannedRun, ...]
    dropped: Mapping[str, Fraction] = field(default_factory=dict)
    is_last: bool = True


def next_round(plan: Plan, states: Mapping[str, State]) -> Round:
    """What comes next. `states` are those of all runs, by name; a failed run is not trained again."""
    if plan.file.study.tune is not None:
        return _tuning(plan, states)
    if plan.file.study.halving is not None:
        return _halving(plan, states)
    runs = [run for run in plan.runs if run.seed in plan.file.study.seeds]
    return Round(_unfinished(runs, states), tuple(runs))


def _tuning(plan: Plan, states: Mapping[str, State]) -> Round:
    """First the candidates; then, of each combination of the other keys, the best candidate with all seeds."""
    tune, seeds = plan.file.study.tune, plan.file.study.seeds
    assert tune is not None
    candidates = tuple(run for run in plan.runs if run.seed in tune.seeds)
    jobs = _unfinished(candidates, states)
    if jobs:
        return Round(jobs, (), is_last=False)
    sign = 1.0 if smallest_is_best(tune.by, tune.best) else -1.0
    groups: dict[str, list[Point]] = {}
    for point in plan.points:
        groups.setdefault(point.text(leaving_out=tune.keys), []).append(point)
    chosen: list[PlannedRun] = []
    for points in groups.values():
        means = [_mean(plan, point, tune.seeds, states, tune.by) for point in points]
        scores = [math.inf if mean is None else sign * mean for mean in means]
        best = points[scores.index(min(scores))]
        chosen += [run for run in plan.runs if run.point is best and run.seed in seeds]
    return Round(_unfinished(chosen, states), tuple(chosen))


def _halving(plan: Plan, states: Mapping[str, State]) -> Round:
    halving = plan.file.study.halving
    assert halving is not None
    sign = 1.0 if smallest_is_best(halving.by, halving.best) else -1.0
    runs = [run for run in plan.runs if run.seed in plan.file.study.seeds]
    alive, dropped = list(dict.fromkeys(run.point.text() for run in runs)), dict[str, Fraction]()
    for number in halving.at:
        at = Fraction(repr(number))
        of_round = [run for run in runs if run.point.text() in alive]
        waiting = [run for run in of_round if not has_reached(states[run.name], at)]
        if waiting:
            return Round(tuple(Job(run, at) for run in waiting), tuple(of_round), dropped=dropped, is_last=False)
        scores = {point: _score(of_round, point, states, at, halving.by) for point in alive}
        kinds = {kind for kind, _ in scores.values() if kind}
        if len(kinds) > 1:  # some were evaluated, others not: compare what all of them have
            scores = {point: _score(of_round, point, states, at, halving.by, "train") for point in alive}
        ranked = sorted(alive, key=lambda point: sign * scores[point][1] if scores[point][0] else math.inf)
        kept = set(ranked[: math.ceil(halving.keep * len(ranked))])
        dropped |= {point: at for point in alive if point not in kept}
        alive = [point for point in alive if point in kept]
    results = [run for run in runs if run.point.text() in alive]
    return Round(_unfinished(results, states), tuple(results), dropped=dropped)


def _unfinished(runs: Sequence[PlannedRun], states: Mapping[str, State]) -> tuple[Job, ...]:
    return tuple(Job(run) for run in runs if states[run.name].status not in ENDED)


def has_reached(state: State, at: Fraction) -> bool:
    """Whether a run has done the fraction `at` of its steps, or has ended."""
    if state.status in ENDED:
        return True
    return state.total_steps is not None and state.step >= pause_step(at, state.total_steps)


def pause_step(at: Fraction, total_steps: int) -> int:
    """The step at which the fraction `at` of a run is done.

    >>> pause_step(Fraction("0.25"), 10)
    3
    """
    return math.ceil(at * total_steps)


def _mean(plan: Plan, point: Point, seeds: Sequence[int], states: Mapping[str, State], metric: str) -> float | None:
    """The mean of a metric over the runs of a combination; None if one of them failed or does not have it."""
    of_point = [states[run.name] for run in plan.runs if run.point is point and run.seed in seeds]
    values = [state.metrics().get(metric) for state in of_point if state.status == "finished"]
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if len(present) == len(of_point) else None


def _score(
    runs: Sequence[PlannedRun], point: str, states: Mapping[str, State], at: Fraction, metric: str, kind: str = ""
) -> tuple[str, float]:
    """The kind of record and the mean of a metric at a fraction of the run; ("", 0) if a run failed or lacks it."""
    found = []
    for state in (states[run.name] for run in runs if run.point.text() == point):
        if state.status in ("failed", "diverged") or state.total_steps is None:
            return "", 0.0
        value = state.value_at(pause_step(at, state.total_steps), metric, kind)
        if value is None:
            return "", 0.0
        found.append(value)
    return found[0][0], sum(value for _, value in found) / len(found)
