"""What an attempt has left behind, in numbers: where it got to, what is lost of it, and what is said of that."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import heartbeats
from launcher.errors import WorkerHung, WorkerLost
from launcher.faults import RULES, rule_for
from launcher.heartbeats import Beat, Verdict
from launcher.retry_policy import Failure, Policy, Skip
from launcher.run_config import RunConfig
from launcher.run_directory import RunDirectory
from resnet_dist.checkpoint import format
from resnet_dist.checkpoint.disk import replace_whole, storage_errors
from resnet_dist.errors import CheckpointError, DivergedError, OutOfMemory
from resnet_dist.rules import settled


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


def policy_of(config: RunConfig) -> Policy:
    """What the config lets the run bear."""
    faults = config.faults
    return Policy(
        least=config.workers.least,
        most=config.workers.most,
        max_failures=faults.max_failures,
        node_strikes=faults.node_strikes,
        max_skips=faults.max_skips,
        skip_nonfinite=faults.on_nonfinite == "skip",
        split_batch=config.batch.num_micro_batches == "auto",
    )


def with_micro_batches(config: RunConfig, count: int | None) -> RunConfig:
    """The config with `count` micro-batches (None: 1), where it leaves their number to us; batch norm's span stays."""
    if config.batch.num_micro_batches != "auto":
        return config
    config = settled(config)
    return dataclasses.replace(config, batch=dataclasses.replace(config.batch, num_micro_batches=count or 1))


def micro_batches_before(run: RunDirectory) -> int | None:
    """The number of micro-batches that the newest attempt had, where it was found out; None where it was not."""
    numbers = [attempt.facts.get("num_micro_batches") for attempt in run.attempts()]
    return next((int(number) for number in reversed(numbers) if number is not None), None)


def strikes_before(run: RunDirectory) -> Counter[str]:
    """The faults of each node in earlier attempts, by what blames a node in `launcher.faults`."""
    blaming = {rule.error.__name__ for rule in RULES if rule.blames_node}
    facts = [attempt.end_facts for attempt in run.attempts()]
    return Counter(fact["node"] for fact in facts if fact.get("class") in blaming and fact.get("node"))


def read_skips(run: RunDirectory) -> tuple[Skip, ...]:
    """The windows of data that earlier attempts have passed over."""
    try:
        return tuple(Skip(**skip) for skip in json.loads((run.path / "skips.json").read_bytes()))
    except FileNotFoundError:
        return ()


def write_skips(run: RunDirectory, skips: Sequence[Skip]) -> None:
    """Record the windows of data that are passed over: whoever goes on with the run must pass over the same."""
    path = run.path / "skips.json"
    with storage_errors(path):
        replace_whole(path, (json.dumps([dataclasses.asdict(skip) for skip in skips]) + "\n").encode())


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
    """The step of the last line of metrics.jsonl; 0 where nothing was written after `since`."""
    try:
        if metrics.stat().st_mtime < since:
            return 0
        lines = tail(metrics, 1)
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def failure_of(error: BaseException, attempt: int, loss: Loss, node: str | None) -> Failure:
    """What the retry policy is told. `node` is where the error came from, for those that blame a node."""
    rule = rule_for(error)
    return Failure(
        attempt=attempt,
        kind=type(error).__name__,
        message=str(error),
        exit_code=int(rule.exit_code),
        retry=rule.retry,
        first_step=loss.first_step,
        saved_step=loss.saved_step,
        node=node if rule.blames_node else None,
        bad_step=error.step if isinstance(error, DivergedError) and error.by_samples else None,
        num_micro_batches_that_fit=error.num_micro_batches if isinstance(error, OutOfMemory) else None,
    )


def hung(verdict: Verdict) -> WorkerHung:
    """A verdict as the error that ends the attempt."""
    return WorkerHung(verdict.host, verdict.rank, verdict.phase, verdict.step, verdict.problem, verdict.node_id)


def gone(beats: Sequence[Beat], problem: str) -> WorkerLost | None:
    """The worker that ended without a word, by the heartbeats; None where that is not one alone."""
    silent = [beat for beat in beats if beat.ended is None]
    if len(silent) != 1:
        return None
    [beat] = silent
    return WorkerLost(beat.host, beat.rank, problem, beat.node_id)


def where(error: BaseException, beats: Sequence[Beat]) -> Beat | None:
    """The worker that `error` speaks of, by its rank."""
    rank = getattr(error, "rank", None)
    return next((beat for beat in beats if beat.rank == rank), None)


def read_beats(run: RunDirectory, attempt: int) -> list[Beat]:
    """All heartbeats of an attempt, by rank."""
    return [beat for _, beat in sorted(heartbeats.read(run.logs(attempt)).items())]


def tail(path: Path, num_lines: int, at_most_bytes: int = 200_000) -> list[str]:
    """The last lines of a text file; an empty list where it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - at_most_bytes, 0))
            return file.read().decode(errors="replace").splitlines()[-num_lines:]
    except OSError:
        return []


def now_text() -> str:
    """The time as attempts.jsonl has it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


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
