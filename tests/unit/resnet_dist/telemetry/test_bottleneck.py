from __future__ import annotations

import pytest

from resnet_dist.telemetry.bottleneck import StepTimes, judge


def lap(step_s: float, own_s: tuple[float, ...], input_s: float = 0.0, copies_s: float = 0.0) -> StepTimes:
    return StepTimes(10, step_s, own_s, input_s, copies_s)


@pytest.mark.parametrize(
    ("times", "bound_by"),
    [
        (lap(1.0, (0.9, 0.9), input_s=0.6), "input"),
        (lap(1.0, (0.9, 0.9), input_s=0.1, copies_s=0.5), "copies"),
        (lap(1.0, (0.9, 0.9), input_s=0.1), "compute"),
        (lap(1.0, (0.3, 0.3), input_s=0.1), "communication"),
        (lap(1.0, (0.2, 0.9, 0.2)), "straggler"),
        (lap(1.0, (0.0, 0.0), input_s=0.2), "compute"),  # nobody knows the workers' own times
    ],
)
def test_the_largest_part_bounds_a_step(times: StepTimes, bound_by: str) -> None:
    verdict = judge([times])
    assert verdict is not None
    assert verdict.bound_by == bound_by


def test_parts_add_up_to_one() -> None:
    verdict = judge([lap(1.0, (0.2, 0.9, 0.3), input_s=0.1, copies_s=0.05), lap(3.0, (0.5, 1.0, 0.4), 2.0, 0.1)])
    assert verdict is not None
    parts = (verdict.input, verdict.copies, verdict.compute, verdict.communication, verdict.straggler)
    assert sum(parts) == pytest.approx(1.0)
    assert min(parts) >= 0


def test_a_straggler_has_a_rank_and_equal_workers_have_none() -> None:
    slow, equal = judge([lap(1.0, (0.2, 0.2, 0.6))]), judge([lap(1.0, (0.5, 0.52, 0.51))])
    assert slow is not None
    assert equal is not None
    assert (slow.straggler_rank, equal.straggler_rank) == (2, None)
    assert slow.straggler == pytest.approx(0.4)


def test_laps_count_by_their_steps() -> None:
    verdict = judge([StepTimes(30, 1.0, (1.0,), 0.0, 0.0), StepTimes(10, 5.0, (5.0,), 0.0, 0.0)])
    assert verdict is not None
    assert verdict.step_time_s == pytest.approx(2.0)


def test_utilisation_is_flops_per_step_against_the_peak() -> None:
    verdict = judge([lap(0.5, (0.5,))], flops_per_s=1e12, peak=(4e12, "a device"))
    assert verdict is not None
    assert verdict.flops_utilisation == pytest.approx(0.5)
    assert "50% of a device" in str(verdict)


def test_without_a_step_there_is_no_verdict() -> None:
    assert judge([]) is None
