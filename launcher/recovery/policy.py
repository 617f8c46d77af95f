"""Whether a run that failed is tried again, and how: a pure function of what has happened so far.

State in, decision out; no clock, no cluster, no files. A driver calls `decide` when an attempt has failed and obeys;
a simulation of a thousand workers can call it just as well.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

MAX_WAIT_S = 60.0  # assumption: a shared file system or a switch that restarts is back after some of these
MAX_HISTORY = 20  # lines that a message shows; attempts.jsonl has all


class Retry(enum.Enum):
    """What may be done about a kind of failure."""

    NEVER = "no"
    RESTART = "yes"
    SKIP_DATA = "with faults.on_nonfinite: skip"
    SPLIT_BATCH = "with batch.num_micro_batches: auto"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a run bears."""

    least: int  # workers
    most: int
    max_failures: int = 3  # in a row, without a later checkpoint
    node_strikes: int = 2
    max_skips: int = 3
    skip_nonfinite: bool = False
    split_batch: bool = False  # whether the number of micro-batches is ours to choose


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an attempt failed. Steps are completed steps; 0 where there is no checkpoint."""

    attempt: int
    kind: str  # the error's class
    message: str
    exit_code: int
    retry: Retry
    first_step: int  # of the checkpoint that the attempt went on from
    saved_step: int  # of the newest complete checkpoint after it
    node: str | None = None  # the one at fault, by whatever name strikes are counted under
    bad_step: int | None = None  # whose loss was not finite
    num_micro_batches_that_fit: int | None = None


@dataclass(frozen=True)
class Skip:
    """From the step after `step` on, the stream of samples is taken `samples` further along."""

    step: int
    samples: int


@dataclass(frozen=True)
class History:
    """What has happened to a run since its driver started."""

    failures: int = 0  # in a row, without a later checkpoint
    saved_step: int = 0  # of the newest checkpoint that any attempt has left
    strikes: Mapping[str, int] = field(default_factory=dict)  # faults by node
    excluded: tuple[str, ...] = ()
    skips: tuple[Skip, ...] = ()
    lines: tuple[str, ...] = ()  # one a failure, for a person


@dataclass(frozen=True)
class Decision:
    """What to do now. `exit_code` is what the run ends with, if it is not tried again."""

    again: bool
    exit_code: int
    reason: str  # for a person
    history: History
    wait_s: float = 0.0  # before the next attempt
    num_micro_batches: int | None = None  # for the next attempt, where it must change


def workers_for(policy: Policy, slots: Mapping[str, int], excluded: Collection[str] = ()) -> int:
    """How many workers to start on nodes with so many `slots` each; 0 where there are too few.

    >>> workers_for(Policy(least=2, most=4), {"a": 2, "b": 1, "c": 2}, excluded=["c"])
    3
    """
    free = sum(count for node, count in slots.items() if node not in excluded)
    return min(free, policy.most) if free >= policy.least else 0


def decide(
    policy: Policy, history: History, failure: Failure, slots: Mapping[str, int], batch_size: int = 0
) -> Decision:
    """What is done after `failure`. `slots` are the nodes that are alive, with the workers that each can hold.

    `batch_size` is the global batch, for the samples that a skip passes over.
    """
    history = _noted(history, failure)
    match failure.retry:
        case Retry.SKIP_DATA:
            return _skip(policy, history, failure, batch_size)
        case Retry.SPLIT_BATCH:
            return _split(policy, history, failure)
        case Retry.NEVER:
            return _give_up(history, failure, "it would fail again")
    history, note = _judged(policy, history, failure, slots)
    if history.failures > policy.max_failures:
        count = f"{history.failures} failure{'s' * (history.failures > 1)} without a later checkpoint"
        return _give_up(history, failure, f"{count}; faults.max_failures is {policy.max_failures}{note}")
    # The first failure is answered at once; what fails again without progress is given time to mend.
    wait_s = 0.0 if history.failures == 1 else min(2.0 ** (history.failures - 2), MAX_WAIT_S)
    reason = f"failure {history.failures} of {policy.max_failures} without a later checkpoint{note}"
    return Decision(True, failure.exit_code, reason, history, wait_s)


def _noted(history: History, failure: Failure) -> History:
    first_line = failure.message.splitlines()[0] if failure.message else ""
    line = f"attempt {failure.attempt}, steps {failure.first_step}.., saved {failure.saved_step}: {failure.kind}: "
    progress = failure.saved_step > history.saved_step
    return dataclasses.replace(
        history,
        failures=1 if progress else history.failures + 1,
        saved_step=max(failure.saved_step, history.saved_step),
        lines=(*history.lines, line + first_line),
    )


def _judged(policy: Policy, history: History, failure: Failure, slots: Mapping[str, int]) -> tuple[History, str]:
    """Count a strike against the node at fault, and leave it out once it has enough."""
    node = failure.node
    if node is None:
        return history, ""
    strikes = {**history.strikes, node: history.strikes.get(node, 0) + 1}
    history = dataclasses.replace(history, strikes=strikes)
    if strikes[node] < policy.node_strikes or node in history.excluded:
        return history, ""
    excluded = (*history.excluded, node)
    if not workers_for(policy, slots, excluded):
        return history, f"; node {node} was at fault {strikes[node]} times, but there are too few without it"
    note = f"; node {node} was at fault {strikes[node]} times and is left out"
    return dataclasses.replace(history, excluded=excluded), note


def _skip(policy: Policy, history: History, failure: Failure, batch_size: int) -> Decision:
    if not policy.skip_nonfinite or failure.bad_step is None:
        return _give_up(history, failure, "it would fail again")
    if len(history.skips) >= policy.max_skips:
        return _give_up(history, failure, f"{len(history.skips)} windows of data were skipped already")
    steps = failure.bad_step - failure.saved_step
    if steps <= 0:
        why = f"step {failure.bad_step} is not after the checkpoint of step {failure.saved_step}"
        return _give_up(history, failure, f"{why}: there is nothing to skip")
    skips = (*history.skips, Skip(failure.saved_step, steps * batch_size))
    history = dataclasses.replace(history, skips=skips, failures=0)
    window = f"the samples of steps {failure.saved_step + 1} to {failure.bad_step}"
    return Decision(True, failure.exit_code, f"skipping {window}, {len(skips)} of {policy.max_skips} skips", history)


def _split(policy: Policy, history: History, failure: Failure) -> Decision:
    count = failure.num_micro_batches_that_fit
    if not policy.split_batch or count is None:
        return _give_up(history, failure, "it would fail again")
    history = dataclasses.replace(history, failures=0)
    return Decision(True, failure.exit_code, f"in {count} micro-batches a step", history, num_micro_batches=count)


def _give_up(history: History, failure: Failure, why: str) -> Decision:
    shown = history.lines[-MAX_HISTORY:]
    if len(history.lines) > 1:
        why = "\n  ".join([f"{why}. What happened:", *shown])
    return Decision(False, failure.exit_code, why, history)
