"""What a person has chosen to see, and the curves that follow from it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.watch.chart import Chart, Curve, Point, number
from launcher.watch.snapshot import NO_RECORDS, Column, Snapshot

PANELS = ("curves", "time", "workers", "log")
SMOOTHING = {"none": 0.0, "light": 0.02, "strong": 0.1}  # part of the points over which an average reaches
AXES = {"step": "step", "epoch": "epoch", "time": "time_s"}  # column of an axis
_STYLES = ("first", "second")


@dataclass(frozen=True)
class View:
    """A person's choices."""

    panel: str = "curves"
    smoothing: str = "light"
    axis: str = "step"
    rank: int = 0
    scroll: int = 0  # lines
    help: bool = False


def duration(seconds: float | None) -> str:
    """Seconds for a person.

    >>> duration(83.4), duration(3 * 3600 + 62), duration(0.25), duration(26 * 3600), duration(None)
    ('1:23', '3:01:02', '0.25 s', '1d 2h', 'n/a')
    """
    if seconds is None or not 0 <= seconds < 1e9:
        return "n/a"
    if seconds < 10:
        return f"{seconds:.2g} s"
    hours, rest = divmod(int(seconds), 3600)
    minutes, whole = divmod(rest, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes}:{whole:02d}"


def percent(value: float) -> str:
    """A fraction in percent.

    >>> percent(0.9859), percent(1.0)
    ('98.6%', '100%')
    """
    return f"{100 * value:.3g}%"


def charts(runs: Sequence[Snapshot], view: View) -> Iterator[Chart]:
    """The charts in the order of their importance: training loss, top-1, throughput, learning rate."""
    x_range = _x_range(runs, view.axis)
    show_x = {"step": _whole, "epoch": "{:.3g}".format, "time": duration}[view.axis]
    marks = [
        (x, mark.sign, _STYLES[index] if len(runs) > 1 else "mark")
        for index, run in enumerate(runs)
        for mark in run.marks
        if (x := _x_of(run, mark.step, view.axis)) is not None
    ]
    smooth = "" if view.smoothing == "none" else ", smoothed"
    for key, title, show, source in (
        ("loss", f"training loss{smooth}", number, "train"),
        ("top1", "top-1 of evaluations", percent, "evals"),
        ("images_per_s", f"images/s{smooth}", number, "train"),
        ("learning_rate", "learning rate", number, "train"),
    ):
        smoothing = SMOOTHING[view.smoothing] if smooth and smooth in title else 0.0
        curves = []
        for index, run in enumerate(runs):
            columns = run.train if source == "train" else run.evals
            points = smoothed(_points(columns, AXES[view.axis], key), smoothing)
            curves.append(Curve(points, _STYLES[index], dashed=index == 1, name="AB"[index] if len(runs) > 1 else ""))
        yield Chart(
            title,
            curves,
            show,
            show_x,
            view.axis,
            x_range,
            marks if key == "loss" else (),
            from_zero=key in ("images_per_s", "learning_rate"),
            may_be_log=key == "loss",
            if_empty=NO_RECORDS if all(run.lacks_records for run in runs) else "no data yet",
        )


def _whole(value: float) -> str:
    return number(round(value))


def smoothed(points: Sequence[Point], part: float) -> list[Point]:
    """Exponential averages over about `part` of the points, at least three; without a bias at the start."""
    if not part:
        return list(points)
    keep = 1 - 2 / (max(part * len(points), 3.0) + 1)
    average, weight, found = 0.0, 0.0, list[Point]()
    for x, y in points:
        if y is not None:
            average, weight = keep * average + (1 - keep) * y, keep * weight + 1 - keep
        found.append((x, None if y is None else average / weight))
    return found


def _points(columns: Mapping[str, Column], axis: str, key: str) -> list[Point]:
    if axis not in columns or key not in columns:
        return []
    return [(x, y) for x, y in zip(columns[axis], columns[key], strict=True) if x is not None]


def _x_range(runs: Sequence[Snapshot], axis: str) -> tuple[float, float]:
    """From 0 to the largest value among the runs."""
    found = [0.0]
    for run in runs:
        for columns in (run.train, run.evals):
            found += [x for x in columns.get(AXES[axis], ()) if x is not None]
        if axis == "step":
            found += [float(mark.step) for mark in run.marks]
    return 0.0, max(found) or 1.0


def _x_of(run: Snapshot, step: int, axis: str) -> float | None:
    """Where a step is on the axis: that of the train record after it."""
    if axis == "step":
        return float(step)
    steps = [value or 0.0 for value in run.train.get("step", ())]
    if not steps:
        return None
    return run.train[AXES[axis]][min(bisect_left(steps, step), len(steps) - 1)]
