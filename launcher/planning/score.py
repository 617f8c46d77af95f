"""How good forecasts were: of one run, as recorded at its start; of a storage, with each configuration left out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config import load as configs
from launcher.errors import ConfigError, UsageError
from launcher.formatting import count, table
from launcher.planning import record
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


@dataclass(frozen=True, kw_only=True)
class Score:
    """The quality of the forecasts of all runs of a storage."""

    outcomes: Sequence[Outcome]  # of times, each forecast without the runs of the same configuration
    recorded: Sequence[Outcome]  # with the forecasts that the runs were started with
    without_forecast: int  # runs for which the others are no evidence

    @property
    def coverage(self) -> float | None:
        """The part of the runs whose time lies within its interval."""
        return _mean([one.inside for one in self.outcomes])

    @property
    def median_width(self) -> float | None:
        """The median of (high - low) / median of the times."""
        return statistics.median(one.forecast.wall_s.relative_width for one in self.outcomes) if self.outcomes else None

    @property
    def median_error(self) -> float | None:
        """The median of |actual - predicted| / actual."""
        errors = [abs(one.forecast.wall_s.median / one.actual_s - 1) for one in self.outcomes if one.actual_s]
        return statistics.median(errors) if errors else None


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

    Their times are forecast once more from runs of other configurations only, with all that is known now.
    """
    runs = list(earlier_runs(storage))
    outcomes = [one for run in runs if (one := _held_out(storage, run, runs)) is not None]
    recorded = [one for run in runs if (one := of_run(RunDirectory(storage, run.name))) is not None]
    return Score(outcomes=outcomes, recorded=recorded, without_forecast=len(runs) - len(outcomes))


def _held_out(storage: Path, run: Earlier, runs: Sequence[Earlier]) -> Outcome | None:
    others = [other for other in runs if other.configuration != run.configuration]
    directory = RunDirectory(storage, run.name)
    try:
        config = as_trained(configs.load(directory.config, recorded=True), directory.attempts()[-1])
    except (ConfigError, UsageError, StorageError, IndexError):
        return None
    found = predict(config, num_samples=run.images.num_samples, earlier=others, calibrated=False)
    if found is None:
        return None
    return Outcome(name=run.name, forecast=found, actual_s=run.times.wall_s, parts=run.times.parts)


def lines(storage: Path) -> Iterator[str]:
    """The score as text. Raises UsageError if there is no finished run that can be read."""
    found = score(storage)
    if not found.outcomes and not found.recorded:
        problem = "no finished runs of at least three configurations whose times can be compared"
        raise UsageError(f"{printable(str(storage))}: {problem}. Allowed: a folder of run directories")
    runs = count(len(found.outcomes), "finished run")
    yield f"{printable(str(storage))}: {runs}, each forecast from the runs of other configurations"
    rows = [_row(one) for one in found.outcomes]
    if rows:
        yield from table([("run", "time", "predicted", "80 % interval", ""), *rows], indent=2)
        yield f"  time       {_summary(found.outcomes)}"
        yield f"             median width {found.median_width:.0%} of the value, median error {found.median_error:.0%}"
    if found.without_forecast:
        yield f"  {count(found.without_forecast, 'run')} without a forecast: the others are no evidence for it"
    if found.recorded:
        yield f"  recorded   {_summary(found.recorded)}: the forecasts that the runs were started with"
    known = [one for one in found.recorded if one.accuracy_inside is not None]
    if known:
        inside = sum(one.accuracy_inside is True for one in known)
        yield f"  accuracy   {inside} of {len(known)} inside the {COVERAGE:.0%} interval that was recorded at the start"
    else:
        yield "  accuracy   no run was started with a forecast of its accuracy"


def _summary(outcomes: Sequence[Outcome]) -> str:
    inside = sum(one.inside for one in outcomes)
    return f"{inside} of {len(outcomes)} ({inside / len(outcomes):.0%}) inside the {COVERAGE:.0%} interval"


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


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
