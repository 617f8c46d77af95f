"""Decisions after failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.recovery.policy import Decision, Failure, History, Policy, Retry, Skip, decide, workers_for

POLICY = Policy(min_workers=2, max_workers=4)
TWO_NODES = {"a": 2, "b": 2}


def failure(number: int = 1, saved_step: int = 0, retry: Retry = Retry.RESTART, **more: Any) -> Failure:
    values: dict[str, Any] = {"kind": "WorkerLost", "message": "killed", "exit_code": 76, "first_step": 0}
    return Failure(attempt=number, saved_step=saved_step, retry=retry, **{**values, **more})


def after(
    *failures: Failure, policy: Policy = POLICY, slots: Mapping[str, int] = TWO_NODES, batch_size: int = 8
) -> Decision:
    """The decision after the last of `failures`; the run must have continued after the others."""
    history, decision = History(), None
    for one in failures:
        assert decision is None or decision.again
        decision = decide(policy, history, one, slots, batch_size)
        history = decision.history
    assert decision is not None
    return decision


def test_a_first_failure_is_retried_at_once() -> None:
    decision = after(failure())
    assert (decision.again, decision.wait_s) == (True, 0.0)
    assert decision.reason == "failure 1 of 3 without a later checkpoint"


def test_failures_without_progress_wait_longer_each_time_until_the_limit() -> None:
    decisions = [after(*(failure(number) for number in range(1, count + 1))) for count in (1, 2, 3, 4)]
    assert [decision.again for decision in decisions] == [True, True, True, False]
    assert [decision.wait_s for decision in decisions[:3]] == [0.0, 1.0, 2.0]


def test_the_reason_to_give_up_has_the_history() -> None:
    decision = after(failure(1), failure(2), failure(3), failure(4, message="killed again\nin detail"))
    assert decision.exit_code == 76
    assert decision.reason.splitlines() == [
        "4 failures without a later checkpoint; faults.max_failures is 3. What happened:",
        "  attempt 1, steps 0.., saved 0: WorkerLost: killed",
        "  attempt 2, steps 0.., saved 0: WorkerLost: killed",
        "  attempt 3, steps 0.., saved 0: WorkerLost: killed",
        "  attempt 4, steps 0.., saved 0: WorkerLost: killed again",
    ]


def test_a_later_checkpoint_resets_the_count() -> None:
    saved = [0, 0, 10, 10, 10, 20, 20, 20]
    decision = after(*(failure(number, step) for number, step in enumerate(saved, start=1)))
    assert decision.again
    assert decision.history.failures == 3


def test_an_earlier_checkpoint_is_no_progress() -> None:
    decision = after(failure(1, 10), failure(2, 5), failure(3, 7))
    assert (decision.history.failures, decision.history.saved_step) == (3, 10)


def test_without_retries_the_first_failure_ends_the_run() -> None:
    decision = after(failure(exit_code=1), policy=dataclasses.replace(POLICY, max_failures=0))
    assert (decision.again, decision.exit_code) == (False, 1)
    assert decision.reason == "1 failure without a later checkpoint; faults.max_failures is 0"


def test_a_failure_that_would_repeat_is_never_retried() -> None:
    assert not after(failure(retry=Retry.NEVER, exit_code=65)).again


# --- nodes


def test_a_node_that_failed_twice_is_excluded_and_named() -> None:
    decision = after(failure(1, 1, node="a"), failure(2, 2, node="a"))
    assert decision.history.excluded == ("a",)
    assert "node a failed 2 times and is excluded" in decision.reason


def test_two_nodes_that_failed_once_each_both_stay() -> None:
    assert after(failure(1, 1, node="a"), failure(2, 2, node="b")).history.excluded == ()


def test_a_node_stays_if_there_are_too_few_without_it() -> None:
    decision = after(failure(1, 1, node="a"), failure(2, 2, node="a"), slots={"a": 2, "b": 1})
    assert decision.history.excluded == ()
    assert "without it there are too few nodes" in decision.reason


def test_a_second_bad_node_is_excluded_only_if_enough_others_are_left() -> None:
    failures = [failure(number, number, node=node) for number, node in enumerate("aabb", start=1)]
    assert after(*failures, slots={"a": 2, "b": 2}).history.excluded == ("a",)
    assert after(*failures, slots={"a": 2, "b": 2, "c": 2}).history.excluded == ("a", "b")


@pytest.mark.parametrize(
    ("slots", "excluded", "workers"),
    [
        ({"a": 2, "b": 2}, (), 4),
        ({"a": 2, "b": 2, "c": 9}, (), 4),
        ({"a": 1, "b": 2}, (), 3),
        ({"a": 2, "b": 2}, ("b",), 2),
        ({"a": 1, "b": 3}, ("b",), 0),
        ({}, (), 0),
    ],
)
def test_the_number_of_workers_follows_from_the_slots(
    slots: dict[str, int], excluded: tuple[str, ...], workers: int
) -> None:
    assert workers_for(POLICY, slots, excluded) == workers


# --- losses that are not finite


def diverged(number: int, saved_step: int, bad_step: int) -> Failure:
    return failure(number, saved_step, Retry.SKIP_DATA, kind="DivergedError", exit_code=79, bad_step=bad_step)


def test_a_loss_that_is_not_finite_ends_the_run_by_default() -> None:
    decision = after(diverged(1, 10, 14))
    assert (decision.again, decision.exit_code) == (False, 79)


def test_a_loss_that_is_not_finite_skips_the_samples_since_the_checkpoint() -> None:
    policy = dataclasses.replace(POLICY, skip_nonfinite=True)
    decision = after(diverged(1, 10, 14), policy=policy)
    assert decision.again
    assert decision.history.skips == (Skip(10, 4 * 8),)
    assert decision.reason == "skipping the samples of steps 11 to 14, 1 of 3 skips"


def test_the_number_of_skipped_windows_is_limited() -> None:
    policy = dataclasses.replace(POLICY, skip_nonfinite=True, max_skips=2, max_failures=0)
    decision = after(diverged(1, 10, 14), diverged(2, 10, 12), diverged(3, 20, 21), policy=policy)
    assert (decision.again, decision.exit_code) == (False, 79)
    assert "2 windows of data skipped already" in decision.reason


def test_a_window_that_ends_before_the_checkpoint_is_not_skipped() -> None:
    policy = dataclasses.replace(POLICY, skip_nonfinite=True)
    decision = after(diverged(1, 40, 33), policy=policy)
    assert (decision.again, decision.exit_code, decision.history.skips) == (False, 79, ())
    assert decision.reason == "step 33 is not after the checkpoint of step 40: there is nothing to skip"


# --- memory


def test_a_batch_that_does_not_fit_is_split_only_with_auto() -> None:
    lacking = failure(retry=Retry.SPLIT_BATCH, exit_code=78, num_micro_batches_that_fit=4)
    assert not after(lacking).again
    decision = after(lacking, policy=dataclasses.replace(POLICY, split_batch=True))
    assert (decision.again, decision.num_micro_batches) == (True, 4)


# --- always


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", "c", None])), min_size=1, max_size=40),
    st.integers(0, 3),
)
def test_every_history_ends_or_makes_progress(events: list[tuple[int, str | None]], max_failures: int) -> None:
    """A run continues only while it saves later checkpoints or has retries left, and never without enough nodes."""
    policy = dataclasses.replace(POLICY, max_failures=max_failures)
    slots, history, saved, since_progress = {"a": 2, "b": 2, "c": 1}, History(), 0, 0
    for number, (more_steps, node) in enumerate(events, start=1):
        since_progress = 1 if more_steps else since_progress + 1
        saved += more_steps
        decision = decide(policy, history, failure(number, saved, node=node), slots)
        history = decision.history
        assert decision.again == (since_progress <= max_failures)
        assert workers_for(policy, slots, history.excluded) >= policy.min_workers
        if not decision.again:
            return
