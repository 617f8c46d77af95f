"""The number of operations of a step, which depends on neither the machine nor the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch

from benchmarks import step
from benchmarks.peers import Setting
from benchmarks.step import CASES, Operations, beyond, operations_of

SETTING = Setting(batch=4, resolution=32)  # ResNet-50


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_worker() -> dict[str, Any]:
    return step.measure(SETTING, asdict(CASES["one worker"]), rounds=0)


def test_a_step_has_at_most_1_3_times_the_operations_of_a_minimal_loop(one_worker: dict[str, Any]) -> None:
    [row] = step.rows_of("one worker", one_worker)
    assert row.goal == 1.3
    assert row.reached, row.note


def test_no_function_of_ours_makes_an_operation_for_each_layer_but_batch_norm_and_norms(
    one_worker: dict[str, Any],
) -> None:
    """The norms of 53 convolutions; on a GPU these are one operation."""
    ours = one_worker["operations"]["ours"]["by_caller"]
    minimal = one_worker["operations"]["minimal"]["by_caller"]
    own = {caller: sum(found.values()) for caller, found in ours.items() if caller not in minimal}
    many = {caller for caller, number in own.items() if number > 30}
    assert many == {"resnet_dist/models/batch_norm.py: _by_slice", "resnet_dist/optim/layerwise.py: _shorter"}


def test_an_operation_is_counted_with_its_caller_and_a_view_is_not() -> None:
    with Operations() as found:
        torch.ones(2, 3).t().add(1)
    assert found.num_views == 1
    assert dict(found.numbers) == {("elsewhere", "aten.ones"): 1, ("elsewhere", "aten.add"): 1}


def test_the_operations_of_the_backward_pass_have_a_name() -> None:
    weight = torch.ones(3, requires_grad=True)
    with Operations() as found:
        (weight * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert found.numbers["backward pass", "aten.mul"] == 2


def test_the_operations_of_a_step_are_those_between_two_lengths_of_a_call() -> None:
    def run(steps: int) -> None:
        torch.zeros(1)  # once in a call
        for _ in range(steps):
            torch.ones(1)

    assert operations_of(run)["number"] == 1


def test_only_what_the_minimal_loop_does_not_do_is_beyond_it() -> None:
    ours = {"by_caller": {"a": {"add": 3, "mul": 1}, "b": {"add": 2}}}
    minimal = {"by_caller": {"a": {"add": 2, "mul": 5}}}
    assert beyond(ours, minimal) == [{"operation": "add", "more": 3, "callers": ["b", "a"]}]
