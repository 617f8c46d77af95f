"""The data of a lesson: docs/lessons/data/STUDY.json, made from the folder of the study."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from launcher.run.directory import RunDirectory
from launcher.run.record_types import as_seconds
from launcher.study.statistics import Summary, paired, summarise
from resnet_dist.telemetry.metrics_file import read_metrics

POINTS = 40  # of a curve: each is the mean over a window of steps
CPU_SECONDS = "cpu_seconds"  # a file in the folder of a study
JOBS = 2  # runs at a time
DIGITS = 5  # significant digits of a number
LEAST = 3  # values that an interval needs: that of two is about 13 deviations wide on each side

Where = Mapping[str, Any]  # values of the keys that the study varies; keys that are left out may have any value


@dataclass(frozen=True)
class Measured:
    """What a study has measured."""

    content: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """How long the study takes on `JOBS` CPUs that nothing else uses: its CPU time, divided by their number."""
        return float(self.content["cpu_seconds"]) / JOBS

    def runs(self, where: Where) -> list[Mapping[str, Any]]:
        """The runs of the result with these values, by seed."""
        return [
            run
            for run in self.content["runs"]
            if run["counts"] and all(run["values"].get(key) == value for key, value in where.items())
        ]

    def by_seed(self, metric: str, where: Where, *, diverged: float | None = None) -> dict[int, float]:
        """A metric of the runs that have it, by seed. `diverged`: the value of runs whose loss was not finite."""
        found = {}
        for run in self.runs(where):
            value = run["metrics"].get(metric, diverged if run["status"] == "diverged" else None)
            if value is not None:
                found[run["seed"]] = value
        return found

    def num_diverged(self, where: Where) -> int:
        """The number of runs whose loss was not finite."""
        return sum(run["status"] == "diverged" for run in self.runs(where))

    def summary(self, metric: str, where: Where, *, diverged: float | None = None) -> Summary:
        """Mean and interval over the seeds; no interval of fewer than `LEAST`.

        Raises ValueError if no run has the metric.
        """
        found = _without_wide_interval(summarise(list(self.by_seed(metric, where, diverged=diverged).values())))
        if found is None:
            raise ValueError(f"{self.content['study']}: no run with {dict(where)} has {metric}")
        return found

    def difference(self, metric: str, where: Where, baseline: Where, *, diverged: float | None = None) -> Summary:
        """`where` minus `baseline`, paired by seed; no interval, and no verdict, of fewer than `LEAST` seeds.

        Raises ValueError without a common seed.
        """
        values, others = (self.by_seed(metric, one, diverged=diverged) for one in (where, baseline))
        found = _without_wide_interval(paired(values, others))
        if found is None:
            raise ValueError(f"{self.content['study']}: {dict(where)} and {dict(baseline)} have no common seed")
        return found

    def between(self, metric: str, other: str, where: Where) -> Summary | None:
        """`metric` minus `other` of the same runs, as `difference`; None if no run has both."""
        return _without_wide_interval(paired(self.by_seed(metric, where), self.by_seed(other, where)))

    def curve(self, name: str, where: Where) -> tuple[list[float], list[float]]:
        """Steps and the mean over the seeds of a field of the train records, at the steps that all runs have."""
        curves = [run["curves"] for run in self.runs(where)]
        length = min(len(curve["step"]) for curve in curves)
        return curves[0]["step"][:length], np.mean([curve[name][:length] for curve in curves], axis=0).tolist()

    def layers(self, name: str, where: Where, step: int = 1) -> list[float]:
        """A number of each layer in the record of a step, in the network's order: the geometric mean over the seeds.

        Empty if no run has the record. Runs in which a number is not finite are left out.
        """
        finite = self._finite_layers(name, where, step)
        with np.errstate(divide="ignore"):
            return np.exp(np.mean(np.log(finite), axis=0)).tolist() if finite else []

    def num_with_layers(self, name: str, where: Where, step: int = 1) -> int:
        """The number of runs whose numbers `layers` averages."""
        return len(self._finite_layers(name, where, step))

    def _finite_layers(self, name: str, where: Where, step: int) -> list[list[float]]:
        found = [run["layers"][str(step)][name] for run in self.runs(where) if str(step) in run["layers"]]
        return [values for values in found if None not in values]


def _without_wide_interval(summary: Summary | None) -> Summary | None:
    return replace(summary, half=None) if summary is not None and summary.n < LEAST else summary


def read(file: Path) -> Measured:
    """The data in a file."""
    return Measured(json.loads(file.read_text(encoding="utf-8")))


def write(measured: Measured, file: Path) -> None:
    """Write data to a file, one line for each run."""
    runs = ",\n".join(json.dumps(run, ensure_ascii=False) for run in measured.content["runs"])
    rest = {key: value for key, value in measured.content.items() if key != "runs"}
    text = json.dumps(rest, indent=1, ensure_ascii=False).removesuffix("\n}")
    file.write_text(f'{text},\n "runs": [\n{runs}\n]}}\n', encoding="utf-8")


def of_study(folder: Path, *, curves: Sequence[str], layers: Sequence[str]) -> Measured:
    """The data in the folder of a finished study.

    `curves` are fields of train records, `layers` of "layers" records, to keep.
    """
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    environment = results["environment"]
    return Measured(
        {
            "study": results["study"],
            "full": results["full"],
            "hypothesis": results["hypothesis"],
            "command": results["command"],
            "time": environment["time"],
            "num_cpus": environment["num_cpus"],
            "wall_seconds": round(_wall_seconds(folder, results["runs"])),
            "cpu_seconds": round(float((folder / CPU_SECONDS).read_text(encoding="utf-8"))),
            "runs": [_run(folder, run, curves, layers) for run in results["runs"] if run["status"] != "waiting"],
        }
    )


def _run(folder: Path, run: Mapping[str, Any], curves: Sequence[str], layers: Sequence[str]) -> dict[str, Any]:
    kept = {key: run[key] for key in ("values", "seed", "status", "counts", "steps")}
    kept["seconds"] = round(run["seconds"])
    kept["metrics"] = {name: _rounded(value) for name, value in run["metrics"].items() if value is not None}
    records = read_metrics(RunDirectory.at(folder / "runs" / run["name"]).metrics)
    if curves and run["counts"]:
        kept["curves"] = _curves(records, curves)
    if layers and run["counts"]:
        kept["layers"] = dict(_layers(records, layers))
    return kept


def _curves(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[float]]:
    """Fields of the train records: means over at most `POINTS` windows of steps; until a value is not finite."""
    train = [record for record in records if record["kind"] == "train"]
    finite = next((n for n, record in enumerate(train) if any(record.get(name) is None for name in names)), len(train))
    windows = np.array_split(np.arange(finite), min(POINTS, finite)) if finite else []
    found = {"step": [train[window[-1]]["step"] for window in windows]}
    for name in names:
        found[name] = [_rounded(float(np.mean([train[n][name] for n in window]))) for window in windows]
    return found


def _layers(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """Numbers of all layers, in the order of the network, by step and name: of the first and the last record."""
    found = [record for record in records if record["kind"] == "layers"]
    for record in found[:1] + found[1:][-1:]:
        of_layers = record["layers"].values()
        yield str(record["step"]), {name: [_rounded(layer.get(name)) for layer in of_layers] for name in names}


def _rounded(value: float | None) -> Any:
    """`value` with `DIGITS` significant digits; None if it is not finite."""
    return float(f"{value:.{DIGITS}g}") if value is not None and math.isfinite(value) else None


def _wall_seconds(folder: Path, runs: Sequence[Mapping[str, Any]]) -> float:
    """The time in which at least one run was running: without the pauses between two sessions."""
    attempts = [one for run in runs for one in RunDirectory.at(folder / "runs" / run["name"]).attempts()]
    return union([(as_seconds(one.started), as_seconds(one.ended)) for one in attempts if one.ended is not None])


def union(intervals: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals.

    >>> union([(0.0, 2.0), (1.0, 3.0), (10.0, 11.0)])
    4.0
    """
    total, until = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
