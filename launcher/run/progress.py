"""How far an attempt got, what a failure lost, and what the next attempt takes over."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.exit_codes import ExitCode
from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat
from launcher.run.record_types import Attempt, as_seconds
from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.disk import checkpoint_errors, storage_errors
from resnet_dist.errors import CheckpointError
from resnet_dist.input_files import parse_json, read_whole
from resnet_dist.telemetry import json_lines
from resnet_dist.telemetry.metrics_file import metrics_record, read_metrics

_LINES = 200  # at the end of metrics.jsonl, searched for the end of the start
_SAVED = (ExitCode.OK, ExitCode.STOPPED, ExitCode.INTERRUPTED)  # an attempt that ends with these has saved


@dataclass(frozen=True)
class LostWork:
    """What a failed attempt loses. All steps are completed steps."""

    first_step: int  # of the checkpoint that the attempt started from
    last_step: int  # completed by any worker
    saved_step: int  # of the newest valid checkpoint
    seconds: float  # since the step that the next attempt starts from, or since the first step of the attempt began
    kept_step: int | None = None  # in the memory of a worker that survives, if that is further than the checkpoint

    @property
    def resumed_step(self) -> int:
        """The next attempt starts from it."""
        return self.saved_step if self.kept_step is None else self.kept_step

    @property
    def steps(self) -> int:
        """Steps to repeat."""
        return max(self.last_step - self.resumed_step, 0)

    def facts(self, beats: Sequence[Heartbeat]) -> dict[str, object]:
        """As recorded in attempts.jsonl."""
        return {
            "checkpoint_step": self.saved_step,
            **({} if self.kept_step is None else {"kept_step": self.kept_step}),
            "steps_redone": self.steps,
            "seconds_lost": round(self.seconds, 1),
            "nodes": sorted({beat.host for beat in beats}),
        }


def recorded_num_micro_batches(run: RunDirectory) -> int | None:
    """The number of micro-batches of the newest attempt that recorded one."""
    numbers = [attempt.facts.get("num_micro_batches") for attempt in run.attempts()]
    return next((number for number in reversed(numbers) if number is not None), None)


def checkpoint_folders(run: RunDirectory) -> list[Path]:
    """The folders of all checkpoints, newest first, by name only; an empty list if they cannot be listed."""
    try:
        return format.step_folders(run.checkpoints)
    except OSError:
        return []


def newest_step(run: RunDirectory) -> int:
    """Completed steps of the newest checkpoint, by name only (cheap); 0 without a checkpoint."""
    return _step_of(next(iter(checkpoint_folders(run)), None))


def newest_valid_step(run: RunDirectory) -> int:
    """Completed steps of the newest checkpoint whose files match their hashes; 0 without one."""
    return _step_of(_newest_valid(run))


def newest_state(run: RunDirectory) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files have their sizes (cheap), and its state.json, whose hash is compared."""
    for path in checkpoint_folders(run):
        file = path / format.STATE
        try:
            record = format.check_sizes(path)[format.STATE]
            with checkpoint_errors(file):
                content = read_whole(file)
            format.check_hash(file, record, hashlib.sha256(content).hexdigest())
        except CheckpointError:
            continue
        return path, dict(parse_json(content))
    return None


def recorded_step(run: RunDirectory) -> int:
    """The step of the newest checkpoint by the run's records, since it last started at step 0; 0 without one.

    The folder of the checkpoints is not read: it may be missing, or mounted over. Raises StorageError.
    """
    steps: list[int] = [0]
    begun = [attempt for attempt in run.attempts() if "from_step" in attempt.facts]  # it had looked for a checkpoint
    for attempt in begun[-1:]:
        from_step = 0 if "from_memory_of_rank" in attempt.facts else attempt.facts["from_step"]
        steps += [from_step, attempt.end_facts.get("checkpoint_step", 0)]
        steps += [attempt.last_step or 0] if attempt.exit_code in _SAVED else []
    with storage_errors(run.metrics):
        records = read_metrics(run.metrics) if run.metrics.exists() else []
    steps += [record["step"] for record in records if record.get("event") == "checkpoint"]
    return max(steps)


def lost_work(
    run: RunDirectory,
    first_step: int,
    began: float,
    beats: Sequence[Heartbeat],
    *,
    training_began: float | None = None,
    verify: bool = True,
    from_memory: bool = False,
    kept_step: int | None = None,
) -> LostWork:
    """What an attempt loses that has just ended. `began` is its start, in seconds of `time.time`.

    `training_began`: when an attempt was last seen to begin its first step. If it was this one, the time before it is
    no lost work; neither is that of an attempt without a step. Without `verify`, the newest checkpoint counts as valid:
    to compare its hashes takes minutes if it is large. `from_memory`: the attempt did not start from a checkpoint.
    `kept_step` is what a worker that survives has in memory; the seconds are then those of the steps after it, as their
    part of the steps since the checkpoint.
    """
    newest, ended = _newest_valid(run) if verify else next(iter(checkpoint_folders(run)), None), time.time()
    seen = training_began if (training_began or 0.0) >= began else None
    saved_step, since = 0 if from_memory else first_step, began if seen is None else seen
    if newest is not None:
        saved_step, since = _step_of(newest), max(since, newest.stat().st_mtime)
    last_step = max(first_step, saved_step, last_recorded(run.metrics, began), *map(completed_steps, beats))
    seconds = max(ended - since, 0.0) if seen is not None or last_step > first_step else 0.0
    if kept_step is None or kept_step < saved_step:
        return LostWork(first_step, last_step, saved_step, seconds)
    last_step = max(last_step, kept_step)
    part = (last_step - kept_step) / max(last_step - saved_step, 1)
    return LostWork(first_step, last_step, saved_step, seconds * part, kept_step)


def completed_steps(beat: Heartbeat) -> int:
    """The steps that a worker has completed: inside of a step, its heartbeat has the number of the running step."""
    return beat.step - (beat.phase == "step")


def has_started(run: RunDirectory, attempt: Attempt, beats: Sequence[Heartbeat]) -> bool:
    """Whether the newest attempt has done its first step, by its heartbeats, or by its records, which come earlier."""
    if any(beat.phase != "start" for beat in beats):
        return True
    try:
        if run.metrics.stat().st_mtime < as_seconds(attempt.started):
            return False  # the records are those of an earlier one
    except OSError:
        return False
    for record in json_lines.read_tail(run.metrics, _LINES, metrics_record)[::-1]:
        if record.get("event") == "stage":
            return record.get("detail", {}).get("begins") is None  # the start is over
        if record["kind"] != "event" or record["event"] in ("finished", "stopped"):
            return True
    return False


def last_recorded(metrics: Path, since: float) -> int:
    """The step of the last record of metrics.jsonl; 0 if nothing was written after `since`."""
    try:
        if metrics.stat().st_mtime < since:
            return 0
    except OSError:
        return 0
    return next((record["step"] for record in reversed(json_lines.read_tail(metrics, 2, metrics_record))), 0)


def images_per_s(run: RunDirectory) -> float:
    """Images per second over all recorded steps, weighted by their time; 0.0 if no step has both numbers."""
    records = [record for record in read_metrics(run.metrics) if record["kind"] == "train"]
    windows = [(record.get("images_per_s"), record.get("step_time_s")) for record in records]
    measured = [(speed, time_s) for speed, time_s in windows if speed is not None and time_s is not None]
    seconds = sum(time_s for _, time_s in measured)
    return sum(speed * time_s for speed, time_s in measured) / seconds if seconds else 0.0


def read_beats(run: RunDirectory, attempt: int) -> list[Heartbeat]:
    """All heartbeats of an attempt, by rank."""
    return list(heartbeats.read(run.logs(attempt)).values())


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else format.step_of(checkpoint.name) or 0


def _newest_valid(run: RunDirectory) -> Path | None:
    """The checkpoint that `resnet_dist.checkpoint.restore.newest` finds, without importing torch."""
    for path in checkpoint_folders(run):
        try:
            format.verify(path)
            state = format.read_json(path / format.STATE)
        except CheckpointError:
            continue
        if isinstance(state, dict) and state.get("step") == format.step_of(path.name):
            return path
    return None
