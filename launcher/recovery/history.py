"""What earlier attempts tell the retry policy: failures by node, skipped data, the error of the newest attempt."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence

from launcher.config.schema import RunConfig
from launcher.errors import WorkerHung, WorkerLost
from launcher.recovery.faults import RULES, rule_for
from launcher.recovery.policy import Failure, Policy, Skip
from launcher.run.directory import RunDirectory
from launcher.run.heartbeats import Beat, Verdict
from launcher.run.progress import Loss
from resnet_dist.checkpoint.disk import replace_whole, storage_errors
from resnet_dist.errors import DivergedError, OutOfMemory


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


def strikes_before(run: RunDirectory) -> Counter[str]:
    """The faults of each node in earlier attempts, by what blames a node in `launcher.recovery.faults`."""
    blaming = {rule.error.__name__ for rule in RULES if rule.blames_node}
    facts = [attempt.end_facts for attempt in run.attempts()]
    return Counter(fact["node"] for fact in facts if fact.get("class") in blaming and fact.get("node"))


def read_skips(run: RunDirectory) -> tuple[Skip, ...]:
    """The windows of data that earlier attempts have passed over."""
    try:
        return tuple(Skip(**skip) for skip in json.loads((run.skips).read_bytes()))
    except FileNotFoundError:
        return ()


def write_skips(run: RunDirectory, skips: Sequence[Skip]) -> None:
    """Record the windows of data that are passed over: whoever goes on with the run must pass over the same."""
    path = run.skips
    with storage_errors(path):
        replace_whole(path, (json.dumps([dataclasses.asdict(skip) for skip in skips]) + "\n").encode())


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
