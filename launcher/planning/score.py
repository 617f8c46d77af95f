"""How good forecasts were: of one run, as recorded at its start; of all runs of a storage, without their own evidence.

A time is forecast from runs of other configurations, an accuracy from runs of the same recipe with other seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, UsageError
from launcher.formatting import count, table
from launcher.planning import record
from launcher.planning.accuracy import own_runs
from launcher.planning.actual import actual
from launcher.planning.forecast import COVERAGE, Forecast, Interval
from launcher.planning.history import Earlier, as_trained, earlier_runs
from launcher.planning.prediction import predict
from launcher.run.directory import RunDirectory
from resnet_dist.errors import StorageError
from resnet_dist.input_files import printable


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A forecast and what came."""

    name: str
    forecast: Forecast
    actual_s: float
    parts: dict[str, float]  # seconds by the names of the forecast's parts, where they are known
    accuracy: Interval | None = None  # top-1 at the end, as predicted: fractions
    top1: float | None = None

    @property
    def inside(self) -> bool:
        """Whether the time lies within its interval."""
        return self.forecast.wall_s.contains(self.actual_s)

    @property
    def accuracy_inside(self) -> bool | None:
        """Whether the accuracy lies within its interval; None if either is unknown."""
        return None if self.accuracy is None or self.top1 is None else self.accuracy.contains(self.top1)


@dataclass(frozen=True)
class Judged:
    """Intervals and the values that came: seconds, or accuracies."""

    pairs: Sequence[tuple[Interval, float]]

    @property
    def inside(self) -> int:
        """The number of values within their intervals."""
        return sum(interval.contains(value) for interval, value in self.pairs)

    @property
    def coverage(self) -> float:
        """The part of the values within their intervals; there is at least one."""
        return self.inside / len(self.pairs)

    @property
    def median_width(self) -> float:
        """The median of (high - low) / median; there is at least one."""
        return statistics.median(interval.relative_width for interval, _ in self.pairs)

    @property
    def median_error(self) -> float:
        """The median of |predicted - actual| / actual; there is at least one."""
        return statistics.median(abs(interval.median / value - 1) if value else 0.0 for interval, value in self.pairs)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The forecasts of all runs of a storage, and what came."""

    outcomes: Sequence[Outcome]  # of times, each forecast without the runs of the same configuration
    accuracies: Judged  # each forecast from the runs of the same recipe with other seeds
    recorded: Sequence[Outcome]  # with the forecasts that the runs were started with
    num_runs: int  # finished
    num_configurations: int

    @property
    def times(self) -> Judged:
        """The times, each forecast without the runs of the same configuration."""
        return _times(self.outcomes)


def of_run(run: RunDirectory) -> Outcome | None:
    """The forecast that a finished run was started with, and what came; None without either."""
    try:
        recorded, times, summary = record.read(run), actual(run), run.summary()
    except (StorageError, OSError):
        return None
    if recorded is None or times is None:
        return None
    return Outcome(
        name=run.name,
        forecast=recorded.forecast,
        actual_s=times.wall_s,
        parts=times.parts,
        accuracy=recorded.accuracy,
        top1=(summary or {}).get("top1"),
    )


def score(storage: Path) -> Score:
    """The score of the finished runs in `storage`.

    They are forecast once more, without their own evidence and with all that is known now.
    """
    runs = list(earlier_runs(storage))
    known = [(run, config) for run in runs if (config := _config(storage, run.name)) is not None]
    outcomes = [one for run, config in known if (one := _held_out(config, run, runs)) is not None]
    accuracies = [pair for _, config in known if (pair := _accuracy(storage, config)) is not None]
    recorded = [one for run in runs if (one := of_run(RunDirectory(storage, run.name))) is not None]
    return Score(
        outcomes=outcomes,
        accuracies=Judged(accuracies),
        recorded=recorded,
        num_runs=len(runs),
        num_configurations=len({run.configuration for run in runs}),
    )


def _config(storage: Path, name: str) -> RunConfig | None:
    run = RunDirectory(storage, name)
    try:
        config = as_trained(configs.load(run.config, recorded=True), run.attempts()[-1])
    except (ConfigError, UsageError, StorageError, IndexError):
        return None
    return replace(config, storage=str(storage), name=name)  # the folder may be a copy


def _accuracy(storage: Path, config: RunConfig) -> tuple[Interval, float] | None:
    """The interval of the top-1 by other seeds, and what came; None for fewer than two others."""
    top1 = (RunDirectory(storage, config.name).summary() or {}).get("top1")
    own = None if top1 is None else own_runs(config, other_seeds=True)
    interval = None if own is None else own.interval()
    return None if interval is None or top1 is None else (interval, top1)


def _held_out(config: RunConfig, run: Earlier, runs: Sequence[Earlier]) -> Outcome | None:
    others = [other for other in runs if other.configuration != run.configuration]
    found = predict(config, num_samples=run.images.num_samples, earlier=others, calibrated=False)
    if found is None:
        return None
    return Outcome(name=run.name, forecast=found, actual_s=run.times.wall_s, parts=run.times.parts)


def lines(storage: Path) -> Iterator[str]:
    """The score as text. Raises UsageError if there is no finished run that can be read."""
    shown = printable(str(storage))
    if not storage.is_dir():
        raise UsageError(f"--score {shown}: there is no such folder. Allowed: a folder of run directories")
    found = score(storage)
    if not found.num_runs:
        raise UsageError(f"--score {shown}: no finished runs in it can be read. Allowed: a folder of run directories")
    runs, configurations = count(found.num_runs, "finished run"), count(found.num_configurations, "configuration")
    yield f"{shown}: {runs} of {configurations}"
    yield "  forecast with all that is known now, without the evidence of the run itself"
    yield from _time_lines(found)
    if found.accuracies.pairs:
        yield f"  accuracy   {_inside(found.accuracies)}, from runs of the same recipe with other seeds"
        yield f"             {_width(found.accuracies)}"
    else:
        yield "  accuracy   no forecast: no recipe has finished runs with three seeds"
    recorded = Judged([(one.accuracy, one.top1) for one in found.recorded if one.accuracy and one.top1 is not None])
    if found.recorded:
        yield "  recorded when the runs were started"
        yield f"  time       {_inside(_times(found.recorded))}"
    if recorded.pairs:
        yield f"  accuracy   {_inside(recorded)}"


def _time_lines(found: Score) -> Iterator[str]:
    if not found.outcomes:
        needed = "runs of three configurations on one device, with the same place and precision"
        yield f"  time       no forecast: that needs {needed}"
        return
    rows = [_row(one) for one in found.outcomes]
    yield from table([("run", "time", "predicted", "80 % interval", ""), *rows], indent=2)
    yield f"  time       {_inside(found.times)}, from runs of other configurations"
    yield f"             {_width(found.times)}"
    if without := found.num_runs - len(found.outcomes):
        yield f"  {count(without, 'run')} without a forecast of the time: the others are no evidence for it"


def _times(outcomes: Iterable[Outcome]) -> Judged:
    return Judged([(one.forecast.wall_s, one.actual_s) for one in outcomes])


def _inside(found: Judged) -> str:
    return f"{found.inside} of {len(found.pairs)} ({found.coverage:.0%}) inside the {COVERAGE:.0%} interval"


def _width(found: Judged) -> str:
    return f"median width {found.median_width:.1%} of the value, median error {found.median_error:.1%}"


def _row(one: Outcome) -> tuple[str, ...]:
    wall = one.forecast.wall_s
    bounds = f"{wall.low:.1f} to {wall.high:.1f} s"
    return (
        printable(one.name),
        f"{one.actual_s:.1f} s",
        f"{wall.median:.1f} s",
        bounds,
        "" if one.inside else "outside",
    )
