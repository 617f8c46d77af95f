"""Tables of a plan: what is done by a deadline, and what other numbers of nodes take."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from launcher.commands import plan_spans
from launcher.commands.plan_result import number
from launcher.commands.plan_text import columns, heading, in_time, paragraph
from launcher.planning import accuracy, cost, deadline
from launcher.planning.deadline import Candidate
from launcher.planning.forecast import Forecast
from launcher.planning.published_recipe import compared
from resnet_dist.recipe.rules.batch import shares_spans

_MOST_ROWS = (12, 6, 6)  # of the groups
_UNKNOWN = "unknown"  # accuracy
_GROUPS = {
    "in time": "in time",
    "perhaps": "perhaps in time: the deadline is inside of the interval",
    "too late": "too late",
}


def lines(
    found: Sequence[Candidate], until: datetime.datetime, now: datetime.datetime, price: float | None
) -> Iterator[str]:
    """The candidates by whether they are done by `until` if they start `now`; first those that reach more for less."""
    left_s = (until - now).total_seconds()
    local = until.astimezone()
    yield from heading(f"Deadline {local:%Y-%m-%d %H:%M %Z}, in {in_time(left_s)}")
    rows = sorted(_rows(found, left_s), key=lambda row: row.rank)
    if not rows:
        yield from paragraph("No candidate has a forecast. --calibrate measures one, --images-per-s gives one.")
        return
    if rows[0].rank[0] > 0:
        yield from paragraph(
            f"No combination of nodes, batch and recipe (of {len(rows):,}) is certain to finish in time."
        )
    shown: list[Candidate] = []
    for order, group in groupby(rows, key=lambda row: row.rank[0]):
        members = list(group)
        shown += [row.candidate for row in members[: _MOST_ROWS[order]]]
        yield from paragraph(list(_GROUPS.values())[order])
        head = ("nodes", "batch", "recipe", "done (80%)", "GPU h" if price is None else "cost", "top-1")
        cells = [head, *(_cells(row, now, price) for row in members[: _MOST_ROWS[order]])]
        if not any(row.forecast.gpus for row in members):
            cells = [(*row[:-2], row[-1]) for row in cells]
        yield from columns(cells, indent=4, needed=("nodes", "batch", "done (80%)", "top-1"))
        if (more := len(members) - _MOST_ROWS[order]) > 0:
            yield f"    and {more} more"
    yield from paragraph(
        "If it starts now, without a queue. top-1: runs of this recipe that reached it, or the source's figure. More"
        " images for a worker than its memory holds need batch.num_micro_batches, with the same results."
    )
    yield from _spans(shown)
    if len(rows) < len(found):
        yield from paragraph("Combinations without a forecast are left out.")


@dataclass(frozen=True)
class _Row:
    """A candidate with its place in the table: verdict, whether the accuracy is unknown, GPU hours or nodes, time."""

    rank: tuple[int, bool, float, float]
    candidate: Candidate
    forecast: Forecast
    accuracy: str


def _rows(found: Sequence[Candidate], left_s: float) -> Iterator[_Row]:
    """The candidates that have a forecast. The accuracy of a recipe does not depend on the number of nodes."""
    known: dict[tuple[str, int], str] = {}
    for one in found:
        if one.forecast is None:
            continue
        key = (one.recipe, one.config.batch.size)
        if key not in known:
            known[key] = _accuracy(one)
        verdict = list(_GROUPS).index(deadline.verdict(one.forecast.wall_s, left_s))
        use = one.forecast.gpu_hours.median or one.config.cluster.nodes
        rank = (verdict, known[key] == _UNKNOWN, use, one.forecast.wall_s.median)
        yield _Row(rank, one, one.forecast, known[key])


def _cells(row: _Row, now: datetime.datetime, price: float | None) -> tuple[str, ...]:
    config, forecast = row.candidate.config, row.forecast
    ends = [deadline.finish(now, seconds) for seconds in (forecast.wall_s.low, forecast.wall_s.high)]
    same_day = ends[0].date() == ends[1].date()
    done = f"{ends[0]:%b %d %H:%M} to {ends[1]:{'%H:%M' if same_day else '%b %d %H:%M'}}"
    use = forecast.gpu_hours.median if price is None else cost.cost(forecast, price).median
    spent = number(use) if forecast.gpus else "-"
    batch = f"{config.batch.size:,}"
    return _nodes(row.candidate), batch, row.candidate.recipe, done, spent, row.accuracy


def _accuracy(one: Candidate) -> str:
    """What is known of the accuracy, in a few characters."""
    if (own := accuracy.own_runs(one.config)) is not None:
        interval = own.interval()
        return f"{own.top1[0]:.1%}" if interval is None else f"{interval.low:.1%} to {interval.high:.1%}"
    if (chance := accuracy.reference_chance(one.config)) is not None:
        return f"{chance.target:.1%}, {chance.reached}/{chance.num}"
    comparison = compared(one.config)
    if comparison is not None and comparison.is_published and comparison.found.runs[0].top1 is not None:
        return f"{comparison.found.runs[0].top1:.1%}"
    return _UNKNOWN


def by_nodes(found: Sequence[Candidate], price: float | None) -> Iterator[str]:
    """The time and cost of the config on several numbers of nodes."""
    head = ("nodes", "workers", "wall time", "80%", *(("GPU hours",) if price is None else ("cost",)))
    rows = []
    for one in found:
        forecast = one.forecast
        if forecast is None:
            continue
        wall = forecast.wall_s
        use = forecast.gpu_hours.median if price is None else cost.cost(forecast, price).median
        bounds = f"{in_time(wall.low)} to {in_time(wall.high)}"
        spent = number(use) if forecast.gpus else "-"
        rows.append((_nodes(one), str(one.config.workers), in_time(wall.median), bounds, spent))
    if rows:
        yield from columns([head, *rows])
    yield from _spans([one for one in found if one.forecast is not None])


def _nodes(one: Candidate) -> str:
    """The number of nodes, marked if the workers share batch-norm spans."""
    shares = shares_spans(one.config, one.config.workers.most)
    return f"{one.config.cluster.nodes:,}{plan_spans.SHARES_SPANS if shares else ''}"


def _spans(shown: Sequence[Candidate]) -> Iterator[str]:
    """What the mark means, if one of the candidates that are `shown` has it."""
    for one in shown:
        if shares_spans(one.config, one.config.workers.most):
            yield from paragraph(plan_spans.not_in_forecasts(one.config))
            return
