"""What the run directory of a planned run says: how it stands, what it measured, how long it took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from launcher.api import Run
from launcher.config.dotted_keys import flatten
from launcher.errors import ConfigError, Problem
from launcher.exit_codes import ExitCode
from launcher.formatting import first_line
from launcher.run import recorded
from launcher.run.progress import newest_step
from launcher.run.record_types import as_seconds
from launcher.study.plan import PlannedRun
from resnet_dist.recipe.references import call_function, is_reference
from resnet_dist.recipe.rules import settled
from resnet_dist.recipe.schema import plain
from resnet_dist.telemetry.metrics_file import read_metrics

Status = Literal["finished", "diverged", "failed", "stopped", "waiting"]
ENDED: tuple[Status, ...] = ("finished", "diverged", "failed")

# Metrics of every run: of its last evaluation, of the run as a whole, and fields of its last train record.
OF_EVALUATION = ("top1", "top5", "loss")
OF_TRAINING_SPLIT = ("train_top1", "train_loss", "gap")  # need evaluate.train
OF_RUN = ("seconds", "steps", "images_per_s")
TRAIN = "train."

# Keys that may differ between a run and the study file: where the images are, and how fast steps are.
_FREE = (*recorded.FREE, "speed")


@dataclass(frozen=True)
class State:
    """How a run stands. `step` is that of its newest checkpoint or its end.

    diverged   its loss was not finite, which the study takes as a result
    failed     it failed, by its run directory or in this session
    stopped    it can go on
    waiting    it has not begun
    """

    status: Status
    reason: str = ""
    code: int | None = None  # exit code of a run that failed or diverged
    step: int = 0
    total_steps: int | None = None
    seconds: float = 0.0  # of all attempts that have ended
    records: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    def as_result(self, may_diverge: bool) -> State:
        """The state with a loss that was not finite as a result, if it `may_diverge`."""
        diverged = self.status == "failed" and self.code == ExitCode.DIVERGED
        return replace(self, status="diverged") if diverged and may_diverge else self

    def metrics(self) -> dict[str, float]:
        """The numbers of its last evaluation; of its last train record with `train.` before their names; the gap."""
        evaluation = _numbers(last(self.records, "eval"))
        if {"top1", "train_top1"} <= evaluation.keys():
            evaluation["gap"] = evaluation["train_top1"] - evaluation["top1"]
        training = {f"{TRAIN}{name}": value for name, value in _numbers(last(self.records, "train")).items()}
        return {**training, **evaluation, "seconds": self.seconds, "steps": float(self.step)}

    def value_at(self, step: int, metric: str, kind: str = "") -> tuple[str, float] | None:
        """The kind of record and the value of a metric in the last evaluation up to `step`, else train record."""
        before = [record for record in self.records if record["step"] <= step]
        kind = "train" if metric.startswith(TRAIN) else kind
        for one in (kind,) if kind else ("eval", "train"):
            value = _numbers(last(before, one)).get(metric.removeprefix(TRAIN))
            if value is not None:
                return one, value
        return None


def last(records: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """The last record of a kind; empty without one."""
    return next((record for record in reversed(records) if record["kind"] == kind), {})


def read(run: PlannedRun) -> State:
    """The state of a run by its directory. Raises StorageError."""
    directory = run.directory
    attempts = directory.attempts() if directory.path.is_dir() else []
    if not attempts:
        return State("waiting")
    records = read_metrics(directory.metrics) if directory.metrics.exists() else []
    started = [record["detail"] for record in records if record.get("event") == "started"]
    total = started[-1].get("total_steps") if started else None
    seconds = sum(as_seconds(one.ended) - as_seconds(one.started) for one in attempts if one.ended is not None)
    summary = directory.summary()
    if summary is not None:
        if len(attempts) == 1 and isinstance(summary.get("time_s"), float):
            seconds = summary["time_s"]  # not rounded to whole seconds
        return State("finished", step=summary.get("step", 0), total_steps=total, seconds=seconds, records=records)
    fatal = directory.fatal()
    step = newest_step(directory)
    if fatal is not None:
        return State("failed", first_line(fatal.message), fatal.exit_code, step, total, seconds, records)
    return State("stopped", step=step, total_steps=total, seconds=seconds, records=records)


def measured(run: PlannedRun, state: State, names: Sequence[str]) -> dict[str, float]:
    """The metrics `names` of a finished run; a function of the user, `package.module:function`, returns several.

    What a run does not have is left out.
    """
    known = state.metrics()
    summary = run.directory.summary() or {}
    if isinstance(speed := summary.get("images_per_s"), float | int):
        known["images_per_s"] = float(speed)
    values: dict[str, float] = {}
    for name in names:
        if is_reference(name):
            found = call_function("metrics", name, Run(run.directory.path))
            values |= _numbers(found if isinstance(found, Mapping) else {name.partition(":")[2]: found})
        elif name in known:
            values[name] = known[name]
    return values


def refuse_changes(runs: Sequence[PlannedRun]) -> None:
    """Raise ConfigError if a run has begun with other values: it would mix two experiments."""
    problems: dict[str, Problem] = {}
    for run in runs:
        directory = run.directory
        found = recorded.newest_recipe(directory) if directory.path.is_dir() else None
        before = None if found is None else recorded.recipe_of(found[1])
        if found is None or before is None:
            continue
        now = flatten(plain(settled(recorded.with_kept_values(run.config, found[1])).recipe()))
        then = flatten(plain(settled(before)))
        for key in sorted({*now, *then}):
            if then.get(key) != now.get(key) and not any(key == free or key.startswith(f"{free}.") for free in _FREE):
                old, new = recorded.shown(then.get(key)), recorded.shown(now.get(key))
                text = f"the run {run.name} has {old}, the study {new}"
                allowed = f"the run's value; another name for the study; or delete the folder {directory.path}"
                problems.setdefault(key, Problem("", key, text, allowed))
    if problems:
        raise ConfigError(list(problems.values()))


def _numbers(record: Mapping[Any, Any]) -> dict[str, float]:
    return {
        str(key): float(value)
        for key, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
