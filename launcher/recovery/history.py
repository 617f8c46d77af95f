"""Input of the retry policy: the limits in the config, and the failures and skips that a run has recorded."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence

from launcher.config.schema import RunConfig
from launcher.errors import WorkerLost
from launcher.recovery.faults import RULES, rule_for
from launcher.recovery.policy import Failure, Policy, Skip
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Heartbeat
from launcher.run.progress import LostWork, newest_state
from launcher.run.record_types import read_record
from resnet_dist.checkpoint.disk import replace_whole, storage_errors
from resnet_dist.errors import DivergedError, OutOfMemory
from resnet_dist.input_files import record_of


def retry_policy(config: RunConfig) -> Policy:
    """The limits that the config sets."""
    faults = config.faults
    return Policy(
        min_workers=config.workers.least,
        max_workers=config.workers.most,
        max_failures=faults.max_failures,
        max_node_failures=faults.max_node_failures,
        max_skips=faults.max_skips,
        skip_nonfinite=faults.on_nonfinite == "skip",
        split_batch=config.batch.num_micro_batches == "auto",
    )


def node_failures(run: RunDirectory) -> Counter[str]:
    """The number of failures of each node in earlier attempts, for errors that count against a node."""
    blaming = {rule.error.__name__ for rule in RULES if rule.blames_node}
    facts = [attempt.end_facts for attempt in run.attempts()]
    return Counter(fact["node"] for fact in facts if str(fact.get("class")) in blaming and fact.get("node"))


def read_skips(run: RunDirectory) -> tuple[Skip, ...]:
    """The windows of samples that earlier attempts have skipped, for a process that runs the run. Raises StorageError.

    If their file is missing, or cannot be read and is set aside, they are those of the newest checkpoint: with other
    windows, the steps after it would use other samples.
    """
    recorded = recorded_skips(run)
    if recorded is not None:
        return recorded
    skips = _skips_of_newest_checkpoint(run)
    run.set_aside(run.skips)
    if skips:
        write_skips(run, skips)
    return skips


def recorded_skips(run: RunDirectory) -> tuple[Skip, ...] | None:
    """The windows of skipped samples in the run's file of them; None without a readable one. Raises StorageError."""
    return read_record(run.skips, _skips)


def _skips(content: object) -> tuple[Skip, ...] | None:
    found = [record_of(Skip, one) for one in content] if isinstance(content, list) else [None]
    return None if None in found else tuple(skip for skip in found if skip is not None)


def _skips_of_newest_checkpoint(run: RunDirectory) -> tuple[Skip, ...]:
    """The windows that the newest checkpoint records as steps of the stream; none without a checkpoint."""
    _, state = newest_state(run) or (None, {})
    skips: list[Skip] = []
    skipped_before = 0
    for first, end in state.get("skipped", []):
        skips.append(Skip(first - skipped_before, (end - first) * state["batch_size"]))
        skipped_before += end - first
    return tuple(skips)


def write_skips(run: RunDirectory, skips: Sequence[Skip]) -> None:
    """Record the windows of skipped samples: every later attempt skips the same. Raises StorageError."""
    with storage_errors(run.skips):
        replace_whole(run.skips, (json.dumps([dataclasses.asdict(skip) for skip in skips]) + "\n").encode())


def describe_failure(error: BaseException, attempt: int, lost: LostWork, node: str | None) -> Failure:
    """`error` as input of the retry policy. `node` is its origin, kept for errors that count against a node."""
    rule = rule_for(error)
    return Failure(
        attempt=attempt,
        kind=type(error).__name__,
        message=str(error),
        exit_code=int(rule.exit_code),
        retry=rule.retry,
        first_step=lost.first_step,
        saved_step=lost.saved_step,
        node=node if rule.blames_node else None,
        bad_step=error.step if isinstance(error, DivergedError) and error.by_samples else None,
        num_micro_batches_that_fit=error.num_micro_batches if isinstance(error, OutOfMemory) else None,
    )


def missing_worker(beats: Sequence[Heartbeat]) -> WorkerLost | None:
    """The only worker whose heartbeat has no end; None if there is none, or more than one."""
    running = [beat for beat in beats if beat.ended is None]
    if len(running) != 1:
        return None
    [beat] = running
    problem = "ended without raising an error; the others lost their connection to it"
    return WorkerLost(beat.host, beat.rank, problem, beat.node_id)


def heartbeat_of(error: BaseException, beats: Sequence[Heartbeat]) -> Heartbeat | None:
    """The heartbeat of the worker that `error` names by its rank."""
    rank = getattr(error, "rank", None)
    return next((beat for beat in beats if beat.rank == rank), None)
