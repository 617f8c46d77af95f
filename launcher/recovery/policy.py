"""The retry policy: a pure function of the failures so far, without clock, cluster or files.

A driver calls `decide` after each failed attempt and follows the decision. Tests simulate a thousand workers with it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from launcher.formatting import count, first_line

MAX_WAIT_S = 60.0  # assumption: enough retries at this distance outlast a restart of a file system or a switch
MAX_HISTORY = 20  # lines shown in a message; attempts.jsonl has all


class Retry(enum.Enum):
    """What is allowed after a kind of failure."""

    NEVER = "no"
    RESTART = "yes"
    SKIP_DATA = "with faults.on_nonfinite: skip"
    SPLIT_BATCH = "with batch.num_micro_batches: auto"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The limits of a run."""

    min_workers: int
    max_workers: int
    max_failures: int = 3  # consecutive, without a newer checkpoint
    max_node_failures: int = 2  # of one node, before it is excluded
    max_skips: int = 3
    skip_nonfinite: bool = False
    split_batch: bool = False  # whether batch.num_micro_batches is auto


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed attempt. Steps are completed steps; 0 means no checkpoint."""

    attempt: int
    kind: str  # class of the error
    message: str
    exit_code: int
    retry: Retry
    first_step: int  # of the checkpoint that the attempt started from
    saved_step: int  # of the newest valid checkpoint after it
    node: str | None = None  # the failed node, by the key under which node failures are counted
    bad_step: int | None = None  # the step with a loss that is not finite
    num_micro_batches_that_fit: int | None = None


@dataclass(frozen=True)
class Skip:
    """After `step`, the next `samples` samples of the stream are skipped."""

    step: int
    samples: int


@dataclass(frozen=True)
class History:
    """The failures of a run."""

    failures: int = 0  # consecutive, without a newer checkpoint
    saved_step: int = 0  # of the newest checkpoint of any attempt
    node_failures: Mapping[str, int] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    skips: tuple[Skip, ...] = ()
    lines: tuple[str, ...] = ()  # one per failure, for a person


@dataclass(frozen=True)
class Decision:
    """What to do after a failure. `exit_code` is that of the run if there is no other attempt."""

    again: bool  # whether there is another attempt
    exit_code: int
    reason: str  # for a person
    history: History
    wait_s: float = 0.0  # before the next attempt
    num_micro_batches: int | None = None  # of the next attempt, if it changes


def workers_for(policy: Policy, slots: Mapping[str, int], excluded: Collection[str] = ()) -> int:
    """The number of workers to start on nodes with `slots` places each; 0 if there are too few.

    >>> workers_for(Policy(min_workers=2, max_workers=4), {"a": 2, "b": 1, "c": 2}, excluded=["c"])
    3
    """
    free = sum(num_slots for node, num_slots in slots.items() if node not in excluded)
    return min(free, policy.max_workers) if free >= policy.min_workers else 0


def decide(
    policy: Policy, history: History, failure: Failure, slots: Mapping[str, int], batch_size: int = 0
) -> Decision:
    """The decision after `failure`. `slots` maps each live node to the number of workers that it can hold.

    `batch_size` is the global batch size, which determines the number of skipped samples.
    """
    history = _with_failure(history, failure)
    match failure.retry:
        case Retry.SKIP_DATA:
            return _skip(policy, history, failure, batch_size)
        case Retry.SPLIT_BATCH:
            return _split(policy, history, failure)
        case Retry.NEVER:
            return _give_up(history, failure)
    history, note = _count_node_failure(policy, history, failure.node, slots)
    if history.failures > policy.max_failures:
        number = count(history.failures, "failure")
        why = f"{number} without a later checkpoint; faults.max_failures is {policy.max_failures}{note}"
        return _give_up(history, failure, why)
    # The first failure is retried at once; repeated failures get time for an outage to end.
    wait_s = 0.0 if history.failures == 1 else min(2.0 ** (history.failures - 2), MAX_WAIT_S)
    reason = f"failure {history.failures} of {policy.max_failures} without a later checkpoint{note}"
    return Decision(True, failure.exit_code, reason, history, wait_s)


def _with_failure(history: History, failure: Failure) -> History:
    line = f"attempt {failure.attempt}, steps {failure.first_step}.., saved {failure.saved_step}: {failure.kind}: "
    progress = failure.saved_step > history.saved_step
    return dataclasses.replace(
        history,
        failures=1 if progress else history.failures + 1,
        saved_step=max(failure.saved_step, history.saved_step),
        lines=(*history.lines, line + first_line(failure.message)),
    )


def _count_node_failure(
    policy: Policy, history: History, node: str | None, slots: Mapping[str, int]
) -> tuple[History, str]:
    """Count a failure of `node`, and exclude the node after too many; returns the history and a note."""
    if node is None:
        return history, ""
    number = history.node_failures.get(node, 0) + 1
    history = dataclasses.replace(history, node_failures={**history.node_failures, node: number})
    if number < policy.max_node_failures or node in history.excluded:
        return history, ""
    note, excluded = f"; node {node} failed {count(number, 'time')}", (*history.excluded, node)
    if not workers_for(policy, slots, excluded):
        return history, f"{note}, but without it there are too few nodes"
    return dataclasses.replace(history, excluded=excluded), f"{note} and is excluded"


def _skip(policy: Policy, history: History, failure: Failure, batch_size: int) -> Decision:
    if not policy.skip_nonfinite or failure.bad_step is None:
        return _give_up(history, failure)
    if len(history.skips) >= policy.max_skips:
        return _give_up(history, failure, f"{count(len(history.skips), 'window')} of data skipped already")
    steps = failure.bad_step - failure.saved_step
    if steps <= 0:
        why = f"step {failure.bad_step} is not after the checkpoint of step {failure.saved_step}"
        return _give_up(history, failure, f"{why}: there is nothing to skip")
    skips = (*history.skips, Skip(failure.saved_step, steps * batch_size))
    history = dataclasses.replace(history, skips=skips, failures=0)
    window = f"the samples of steps {failure.saved_step + 1} to {failure.bad_step}"
    return Decision(True, failure.exit_code, f"skipping {window}, {len(skips)} of {policy.max_skips} skips", history)


def _split(policy: Policy, history: History, failure: Failure) -> Decision:
    number = failure.num_micro_batches_that_fit
    if not policy.split_batch or number is None:
        return _give_up(history, failure)
    history = dataclasses.replace(history, failures=0)
    reason = f"{count(number, 'micro-batch')} per step"
    return Decision(True, failure.exit_code, reason, history, num_micro_batches=number)


def _give_up(history: History, failure: Failure, why: str = "a retry would fail in the same way") -> Decision:
    if len(history.lines) > 1:
        why = "\n  ".join([f"{why}. What happened:", *history.lines[-MAX_HISTORY:]])
    return Decision(False, failure.exit_code, why, history)
