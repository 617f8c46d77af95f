"""The results of a study: by run, by combination, and against the baseline; as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.formatting import count, table
from launcher.study.plan import LABEL, Plan, PlannedRun, Point, short, shown
from launcher.study.rounds import Round
from launcher.study.state import State, measured
from launcher.study.statistics import Summary, paired, summarise
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.schema import plain

PERCENT = ("top1", "top5", "train_top1", "train_top5", "gap")  # shown in percent


@dataclass(frozen=True)
class RunResult:
    """A run and its metrics. `counts`: it is in the table; else it is a candidate of a tuning, or was stopped early."""

    run: PlannedRun
    state: State
    values: Mapping[str, float]
    counts: bool


@dataclass(frozen=True)
class Row:
    """A combination: the metrics of its finished runs by seed, and how many of its runs there are."""

    point: Point
    values: Mapping[str, Mapping[int, float]]
    num_runs: int
    num_diverged: int

    def summary(self, metric: str) -> Summary | None:
        """Over the seeds; None if no run has the metric."""
        return summarise(list(self.values.get(metric, {}).values()))


@dataclass(frozen=True)
class Comparison:
    """A combination minus its baseline, paired by seed; None without a common seed."""

    point: Point
    baseline: Point
    metric: str
    difference: Summary | None

    @property
    def verdict(self) -> str:
        """Larger or smaller than the baseline, or inconclusive; `no data` without a common seed."""
        return "no data" if self.difference is None else self.difference.verdict


@dataclass(frozen=True)
class Results:
    """Everything that a study has measured."""

    plan: Plan
    runs: Sequence[RunResult]
    rows: Sequence[Row]
    comparisons: Sequence[Comparison]
    metrics: Sequence[str]  # in the order of the study; those of the user's functions as they named them
    dropped: Mapping[str, float]  # combinations that successive halving has stopped, and after which part of a run

    @property
    def failed(self) -> list[RunResult]:
        """The runs that failed."""
        return [one for one in self.runs if one.state.status == "failed"]

    @property
    def seconds(self) -> float:
        """Of all runs, added up."""
        return sum(one.state.seconds for one in self.runs)


def collect(plan: Plan, last: Round, states: Mapping[str, State]) -> Results:
    """The results of the runs so far. Raises what a metric of the user raises."""
    study = plan.file.study
    counted = {run.name for run in last.results}
    named = [*study.metrics, *([study.compare.metric] if study.compare else [])]
    named += [figure.y for figure in study.figures if figure.kind in ("line", "bar")]
    names = list(dict.fromkeys(named))
    runs = []
    for run in plan.runs:
        state = states[run.name]
        values = measured(run, state, names) if state.status == "finished" else {}
        runs.append(RunResult(run, state, values, run.name in counted))
    rows = rows_of(one for one in runs if one.counts)
    metrics = [name for name in study.metrics if not is_reference(name)]
    known = {name for one in runs for name in one.values}
    if any(map(is_reference, study.metrics)):
        metrics += sorted(known - set(names))
    compared = list(_comparisons(rows, study.compare.baseline, study.compare.metric)) if study.compare else []
    return Results(plan, runs, rows, compared, metrics, {key: float(at) for key, at in last.dropped.items()})


def rows_of(runs: Iterator[RunResult] | Sequence[RunResult]) -> list[Row]:
    """The combinations of `runs`, in their order."""
    by_point: dict[str, list[RunResult]] = {}
    for one in runs:
        by_point.setdefault(one.run.point.text(), []).append(one)
    rows = []
    for group in by_point.values():
        values: dict[str, dict[int, float]] = {}
        for one in group:
            for name, value in one.values.items():
                values.setdefault(name, {})[one.run.seed] = value
        diverged = sum(one.state.status == "diverged" for one in group)
        rows.append(Row(group[0].run.point, values, len(group), diverged))
    return rows


def _comparisons(rows: Sequence[Row], baseline: Mapping[str, Any], metric: str) -> Iterator[Comparison]:
    """Every combination against that with the baseline's values and otherwise the same ones."""

    def others(point: Point) -> dict[str, Any]:
        return {key: value for key, value in point.axes.items() if key not in baseline}

    bases = [row for row in rows if all(row.point.value(key) == value for key, value in baseline.items())]
    for row in rows:
        for base in bases:
            if row is not base and row not in bases and others(row.point) == others(base.point):
                difference = paired(row.values.get(metric, {}), base.values.get(metric, {}))
                yield Comparison(row.point, base.point, metric, difference)


def unit(metric: str) -> str:
    """The unit of a metric in tables.

    >>> unit("top1"), unit("loss")
    (' (%)', '')
    """
    return " (%)" if metric in PERCENT else ""


def value_text(metric: str, value: float | None, sign: str = "") -> str:
    """A value for a person, without its `unit`: in percent, or with four significant digits.

    >>> value_text("top1", 0.8512), value_text("loss", 0.51234), value_text("gap", 0.01, "+")
    ('85.12', '0.5123', '+1.00')
    """
    if value is None:
        return "-"
    return f"{100 * value:{sign}.2f}" if metric in PERCENT else f"{value:{sign}.4g}"


def summary_text(metric: str, summary: Summary | None) -> str:
    """Mean, half of the interval and standard deviation: `85.12 ± 0.43 (0.17)`."""
    if summary is None:
        return "-"
    mean = value_text(metric, summary.mean)
    if summary.half is None or summary.deviation is None:
        return mean
    factor, form = (100, ".2f") if metric in PERCENT else (1, ".2g")
    return f"{mean} ± {factor * summary.half:{form}} ({factor * summary.deviation:{form}})"


def result_rows(results: Results) -> list[list[str]]:
    """The table of combinations, with a first row of names."""
    axes = results.plan.axes
    lists = [[*(short(key, axes) for key in axes), "n", *(f"{name}{unit(name)}" for name in results.metrics)]]
    for row in results.rows:
        n = max((len(values) for values in row.values.values()), default=0)
        note = f" ({row.num_diverged} diverged)" if row.num_diverged else ""
        shown_axes = [shown(row.point.axes[key]) if key in row.point.axes else "" for key in axes]
        cells = [summary_text(metric, row.summary(metric)) for metric in results.metrics]
        lists.append([*shown_axes, f"{n} of {row.num_runs}{note}" if n < row.num_runs else str(n), *cells])
    return lists


def comparison_rows(results: Results) -> list[list[str]]:
    """The table of comparisons, with a first row of names."""
    metric = results.comparisons[0].metric
    in_points = " (percentage points)" if unit(metric) else ""
    lists = [["", "baseline", f"difference in {metric}{in_points}", "95 % interval", "n", ""]]
    for one in results.comparisons:
        difference = one.difference
        mean, interval = "-", "-"
        if difference is not None:
            mean = value_text(one.metric, difference.mean, "+")
            if difference.half is not None:
                low, high = difference.mean - difference.half, difference.mean + difference.half
                interval = f"{value_text(one.metric, low, '+')} to {value_text(one.metric, high, '+')}"
        n = "0" if difference is None else str(difference.n)
        lists.append([one.point.text() or "all", _differs(one), mean, interval, n, one.verdict])
    return lists


def _differs(one: Comparison) -> str:
    keys = [key for key in one.baseline.axes if one.baseline.axes[key] != one.point.axes.get(key)]
    return ", ".join(shown(one.baseline.axes[key]) if key == LABEL else f"{short(key, keys)} "
                     f"{shown(one.baseline.axes[key])}" for key in keys)  # fmt: skip


def lines(results: Results) -> Iterator[str]:
    """The results as text."""
    study = results.plan.file.study
    if study.hypothesis:
        yield f"hypothesis: {' '.join(study.hypothesis.split())}"
        yield ""
    if results.rows:
        yield from table(result_rows(results))
        if any(row.num_runs > 1 for row in results.rows):
            yield "mean ± half of the 95 % interval of the mean (standard deviation) over the seeds"
    else:
        finished = sum(one.state.status == "finished" for one in results.runs)
        yield f"no results yet: {finished} of at most {count(results.plan.num_runs, 'run')} finished"
    if results.comparisons:
        yield ""
        yield from table(comparison_rows(results))
    for point, at in results.dropped.items():
        yield f"stopped at {at:.0%} of the run: {point}"
    for one in results.failed:
        yield f"failed: {one.run.name}: exit code {one.state.code}: {one.state.reason}"


def to_csv(results: Results) -> str:
    """One line for each run."""
    axes = results.plan.axes
    known = {name for one in results.runs for name in one.values}
    metrics = [*(name for name in results.metrics if name in known), *sorted(known - set(results.metrics))]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", *axes, "seed", "status", "counts", *metrics, "seconds", "reason"])
    for one in results.runs:
        writer.writerow(
            [
                one.run.name,
                *(shown(one.run.point.axes[key]) if key in one.run.point.axes else "" for key in axes),
                one.run.seed,
                one.state.status,
                "yes" if one.counts else "no",
                *(one.values.get(name, "") for name in metrics),
                f"{one.state.seconds:.3f}",
                one.state.reason,
            ]
        )
    return stream.getvalue()


def to_json(results: Results, facts: Mapping[str, Any]) -> str:
    """All results, with `facts` about how they were made."""
    study = results.plan.file.study

    def summary(one: Summary | None) -> dict[str, Any] | None:
        return None if one is None else asdict(one)

    content = {
        "study": study.name,
        "full": results.plan.file.is_full,
        "hypothesis": study.hypothesis,
        **facts,
        "seconds": round(results.seconds, 3),
        "rows": [
            {
                "values": plain(row.point.axes),
                "num_runs": row.num_runs,
                "num_diverged": row.num_diverged,
                "metrics": {
                    name: {**(summary(row.summary(name)) or {}), "by_seed": values}
                    for name, values in row.values.items()
                },
            }
            for row in results.rows
        ],
        "comparisons": [
            {
                "values": plain(one.point.axes),
                "baseline": plain(one.baseline.axes),
                "metric": one.metric,
                "difference": summary(one.difference),
                "verdict": one.verdict,
            }
            for one in results.comparisons
        ],
        "dropped": results.dropped,
        "runs": [
            {
                "name": one.run.name,
                "values": plain(one.run.point.axes),
                "seed": one.run.seed,
                "status": one.state.status,
                "reason": one.state.reason,
                "counts": one.counts,
                "metrics": one.values,
                "steps": one.state.step,
                "seconds": round(one.state.seconds, 3),
            }
            for one in results.runs
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
