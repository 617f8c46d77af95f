"""What a run has taken so far: the time of its commands, and how it splits. Read without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from launcher.run.directory import RunDirectory
from launcher.run.record_types import Attempt, Facts, as_seconds, as_time
from resnet_dist.telemetry.metrics_file import read_metrics

PARTS = ("start_s", "training_s", "evaluation_s", "saving_s")


@dataclass(frozen=True, kw_only=True)
class Actual:
    """Seconds of a run, without the time in which it was not scheduled; a part is None where it is unknown."""

    wall_s: float
    start_s: float | None  # before the first step and after the last one
    training_s: float | None
    evaluation_s: float | None
    saving_s: float | None

    @property
    def parts(self) -> dict[str, float]:
        """The known parts by their names."""
        return {name: value for name in PARTS if (value := getattr(self, name)) is not None}


def actual(run: RunDirectory) -> Actual | None:
    """The times of a finished run; None for another one, and if its files cannot be read."""
    summary = run.summary()
    attempts = run.attempts()
    if not summary or not attempts:
        return None
    command_s = summary.get("command_s")
    whole = commands_s(run, attempts, command_s)
    steps = {name: value for name in PARTS[1:] if (value := summary.get(name)) is not None and value >= 0}
    if len(_commands(attempts)) > 1 or len(steps) < len(PARTS) - 1:
        return Actual(wall_s=whole, **_from_metrics(run, whole))
    start_s = max(whole - sum(steps.values()), 0.0)
    return Actual(wall_s=whole, start_s=start_s, **steps)


def commands_s(run: RunDirectory, attempts: Sequence[Attempt], last_s: float | None = None) -> float:
    """The time of all commands: from the begin of each to the end of its last attempt.

    A command whose begin is not recorded counts from its first attempt. `last_s`: the time of the last one, if known.
    """
    commands = _commands(attempts)
    times = [as_seconds(_end(run, of_one[-1])) - as_seconds(_begin(of_one[0])) for of_one in commands]
    if last_s is not None:
        times[-1] = last_s
    return sum(max(time_s, 0.0) for time_s in times)


def _begin(first: Attempt) -> str:
    """The begin of the command with this first attempt."""
    return first.command_began or first.started


def _commands(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """The attempts by the start of the launcher that began them. Runs of version 0.1 have one for each."""
    commands = [[attempts[0]]]
    for before, attempt in pairwise(attempts):
        if attempt.session and attempt.session == before.session:
            commands[-1].append(attempt)
        else:
            commands.append([attempt])
    return commands


def _end(run: RunDirectory, attempt: Attempt) -> str:
    """The end of an attempt; without a record of it, its last sign of life."""
    if attempt.ended is not None:
        return attempt.ended
    try:
        newest = max((path.lstat().st_mtime for path in run.logs(attempt.number).heartbeats.glob("*")), default=None)
    except OSError:
        newest = None
    return attempt.started if newest is None else as_time(newest)


def _from_metrics(run: RunDirectory, whole_s: float) -> dict[str, float | None]:
    """The parts by the records of the trainer. Steps that were repeated, and all the rest, count as start."""
    try:
        records = read_metrics(run.metrics)
    except OSError:
        return dict.fromkeys(PARTS)
    training_s = sum(time_s for _, time_s in steps_of(records))
    evaluation_s = sum(record["time_s"] for record in records if _has(record, "eval", "time_s"))
    details = [record["detail"] for record in records if record.get("event") == "checkpoint"]
    saving_s = sum(detail.get("stalled_s") or 0.0 for detail in details)
    start_s = max(whole_s - training_s - evaluation_s - saving_s, 0.0)
    return {"start_s": start_s, "training_s": training_s, "evaluation_s": evaluation_s, "saving_s": saving_s}


def steps_of(records: Sequence[Facts]) -> list[tuple[int, float]]:
    """(number of steps, seconds) of each train record, which covers all steps since the one before it."""
    starts = sorted(record["step"] for record in records if record.get("event") == "started")
    found, before = [], 0
    for record in records:
        if _has(record, "train", "step_time_s"):
            num = record["step"] - max([before, *(step for step in starts if step < record["step"])])
            found.append((num, record["step_time_s"] * num))
        if record["kind"] == "train":
            before = record["step"]
    return found


def _has(record: Facts, kind: str, key: str) -> Any:
    return record["kind"] == kind and record.get(key) is not None
