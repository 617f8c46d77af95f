"""The numbers of a figure: lines of points, each with an interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.study.plan import LABEL, Point, short, shown
from launcher.study.results import PERCENT, Results, RunResult, rows_of
from launcher.study.schema import Figure

EVALUATION = "eval."


@dataclass(frozen=True)
class Series:
    """A line: `low` and `high` are the interval of the mean (line, bar) or the range over the seeds (curve, layers).

    `family` is the first part of the label, which lines of one colour share if there are more parts.
    """

    label: str
    family: str
    x: Sequence[Any]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def series(figure: Figure, results: Results) -> list[Series]:
    """The lines of a figure, without those that have no points. Values in percent are multiplied by 100."""
    runs = _runs(figure, results)
    groups: dict[str, list[RunResult]] = {}
    for one in runs:
        groups.setdefault(_label(one.run.point, _by(figure, runs, results)), []).append(one)
    make = {"line": _metric, "bar": _metric, "curve": _curve, "layers": _layers}[figure.kind]
    factor = 100.0 if figure.y.removeprefix(EVALUATION) in PERCENT else 1.0
    made = []
    for label, group in groups.items():
        points = list(make(figure, group))
        if points:
            x, *numbers = zip(*points, strict=True)
            mean, low, high = ([factor * value for value in column] for column in numbers)
            made.append(Series(label, label.partition(", ")[0], list(x), mean, low, high))
    return made


def _runs(figure: Figure, results: Results) -> list[RunResult]:
    """The runs of a figure: those that count; the candidates of a tuning if the figure shows a tuned key."""
    tune = results.plan.file.study.tune
    named = {figure.x, *_keys(figure)}
    of_tuning = tune is not None and any(key in named for key in tune.keys)
    return [
        one for one in results.runs if (one.run.seed in tune.seeds if tune is not None and of_tuning else one.counts)
    ]


def _keys(figure: Figure) -> tuple[str, ...]:
    return (figure.by,) if isinstance(figure.by, str) else figure.by or ()


def _by(figure: Figure, runs: Sequence[RunResult], results: Results) -> list[str]:
    """The keys that distinguish the lines: those of `by`, else all that vary but x and what a tuning chose."""
    if figure.by is not None:
        return list(_keys(figure))
    tuned = results.plan.file.study.tune.keys if results.plan.file.study.tune else ()
    varying = [key for key in results.plan.axes if len({shown(one.run.point.axes.get(key)) for one in runs}) > 1]
    return [key for key in varying if key != figure.x and key not in tuned]


def _label(point: Point, by: Sequence[str]) -> str:
    values = [(key, shown(point.value(key))) for key in by]
    return ", ".join(value if key == LABEL else f"{short(key, by)} {value}" for key, value in values)


def _metric(figure: Figure, runs: Sequence[RunResult]) -> Iterator[tuple[Any, float, float, float]]:
    """The metric at each value of x, in the order of the study, or ascending if all are numbers."""
    assert figure.x is not None
    found = []
    for row in rows_of(runs):
        summary = row.summary(figure.y)
        if summary is not None:
            half = summary.half or 0.0
            found.append((row.point.value(figure.x), summary.mean, summary.mean - half, summary.mean + half))
    return iter(sorted(found, key=lambda point: point[0]) if all(is_number(point[0]) for point in found) else found)


def _curve(figure: Figure, runs: Sequence[RunResult]) -> Iterator[tuple[Any, float, float, float]]:
    """A field of the records at each step that all runs have."""
    kind, _, name = figure.y.partition(".")
    curves = [
        {
            record["step"]: float(record[name])
            for record in one.state.records
            if record["kind"] == kind and is_number(record.get(name))
        }
        for one in runs
    ]
    yield from _band([curve for curve in curves if curve])


def _layers(figure: Figure, runs: Sequence[RunResult]) -> Iterator[tuple[Any, float, float, float]]:
    """A field of each layer, numbered from 1 in the order of the network, in the first record."""
    found = []
    for one in runs:
        first = next((record for record in one.state.records if record["kind"] == "layers"), None)
        if first is not None:
            values = [layer.get(figure.y) for layer in first["layers"].values()]
            numbers = [float(value) for value in values if is_number(value)]
            found.append(dict(enumerate(numbers, start=1)))
    yield from _band(found)


def _band(curves: Sequence[Mapping[int, float]]) -> Iterator[tuple[int, float, float, float]]:
    """Mean and range at each position that all curves have."""
    for position in sorted(set.intersection(*map(set, curves)) if curves else ()):
        values = [curve[position] for curve in curves]
        yield position, sum(values) / len(values), min(values), max(values)


def is_number(value: object) -> bool:
    """Whether a value can be drawn on a scale."""
    return isinstance(value, int | float) and not isinstance(value, bool)
