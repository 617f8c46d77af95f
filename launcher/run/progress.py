"""What an attempt has left behind, in numbers: where it got to, what is lost of it, and what is said of that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.run import heartbeats
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Beat
from resnet_dist.checkpoint import format
from resnet_dist.errors import CheckpointError
from resnet_dist.telemetry import json_lines


@dataclass(frozen=True)
class Loss:
    """What a failed attempt did for nothing."""

    first_step: int  # of the checkpoint that it went on from; all in completed steps
    last_step: int  # that any worker has completed
    saved_step: int  # of the newest checkpoint that can be trusted: where the next attempt goes on
    seconds: float  # since that checkpoint, or since the attempt began

    @property
    def steps(self) -> int:
        """Steps that must be done again."""
        return max(self.last_step - self.saved_step, 0)

    def facts(self, beats: Sequence[Beat]) -> dict[str, Any]:
        """As attempts.jsonl has it."""
        return {
            "checkpoint_step": self.saved_step,
            "steps_redone": self.steps,
            "seconds_lost": round(self.seconds, 1),
            "nodes": sorted({beat.host for beat in beats}),
        }


def micro_batches_before(run: RunDirectory) -> int | None:
    """The number of micro-batches that the newest attempt had, where it was found out; None where it was not."""
    numbers = [attempt.facts.get("num_micro_batches") for attempt in run.attempts()]
    return next((int(number) for number in reversed(numbers) if number is not None), None)


def newest_step(run: RunDirectory) -> int:
    """Completed steps of the newest checkpoint, by its name alone, which is cheap; 0 where there is none."""
    try:
        path = next(iter(format.step_folders(run.checkpoints)), None)
    except OSError:
        return 0
    return 0 if path is None else format.step_of(path.name) or 0


def trusted_step(run: RunDirectory) -> int:
    """Completed steps of the newest checkpoint whose files have their hashes; 0 where there is none."""
    path = _trusted(run)
    return 0 if path is None else format.step_of(path.name) or 0


def loss_of(run: RunDirectory, first_step: int, began: float, beats: Sequence[Beat]) -> Loss:
    """What is lost of an attempt that failed just now. `began` is its start, in seconds of `time.time`."""
    newest, ended = _trusted(run), time.time()
    saved_step, since = first_step, began
    if newest is not None:
        saved_step = format.step_of(newest.name) or 0
        since = max(began, newest.stat().st_mtime)
    # A running step is not completed; outside of steps the number is that of completed ones.
    done = [beat.step - (1 if beat.phase == "step" else 0) for beat in beats]
    last_step = max([first_step, saved_step, last_recorded(run.metrics, began), *done])
    return Loss(first_step, last_step, saved_step, max(ended - since, 0.0))


def last_recorded(metrics: Path, since: float) -> int:
    """The step of the last record of metrics.jsonl; 0 where nothing was written after `since`."""
    try:
        if metrics.stat().st_mtime < since:
            return 0
    except OSError:
        return 0
    step = next((record.get("step") for record in reversed(json_lines.read_tail(metrics, 2))), 0)
    return step if type(step) is int else 0


def read_beats(run: RunDirectory, attempt: int) -> list[Beat]:
    """All heartbeats of an attempt, by rank."""
    return [beat for _, beat in sorted(heartbeats.read(run.logs(attempt)).items())]


def _trusted(run: RunDirectory) -> Path | None:
    """The checkpoint that `resnet_dist.checkpoint.restore.newest` would find, without torch, which that needs."""
    try:
        candidates = format.step_folders(run.checkpoints)
    except OSError:
        return None
    for path in candidates:
        try:
            format.verify(path)
            state = format.read_json(path / format.STATE)
        except CheckpointError:
            continue
        if isinstance(state, dict) and state.get("step") == format.step_of(path.name):
            return path
    return None
