from __future__ import annotations

import pytest

from resnet_dist.telemetry.bottleneck import StepTimes, classify


def window(step_s: float, local_s: tuple[float, ...], input_s: float = 0.0, copies_s: float = 0.0) -> StepTimes:
    return StepTimes(10, step_s, local_s, input_s, copies_s)


@pytest.mark.parametrize(
    ("times", "bound_by"),
    [
        (window(1.0, (0.9, 0.9), input_s=0.6), "input"),
        (window(1.0, (0.9, 0.9), input_s=0.1, copies_s=0.5), "copies"),
        (window(1.0, (0.9, 0.9), input_s=0.1), "compute"),
        (window(1.0, (0.3, 0.3), input_s=0.1), "communication"),
        (window(1.0, (0.2, 0.9, 0.2)), "straggler"),
        (window(1.0, (0.0, 0.0), input_s=0.2), "compute"),  # the workers' local times are unknown
    ],
)
def test_the_largest_part_bounds_a_step(times: StepTimes, bound_by: str) -> None:
    found = classify([times])
    assert found is not None
    assert found.bound_by == bound_by


def test_parts_add_up_to_one() -> None:
    found = classify([window(1.0, (0.2, 0.9, 0.3), input_s=0.1, copies_s=0.05), window(3.0, (0.5, 1.0, 0.4), 2.0, 0.1)])
    assert found is not None
    parts = (found.input, found.copies, found.compute, found.communication, found.straggler)
    assert sum(parts) == pytest.approx(1.0)
    assert min(parts) >= 0


def test_a_straggler_has_a_rank_and_equal_workers_have_none() -> None:
    slow, equal = classify([window(1.0, (0.2, 0.2, 0.6))]), classify([window(1.0, (0.5, 0.52, 0.51))])
    assert slow is not None
    assert equal is not None
    assert (slow.straggler_rank, equal.straggler_rank) == (2, None)
    assert slow.straggler == pytest.approx(0.4)


def test_windows_are_weighted_by_their_steps() -> None:
    found = classify([StepTimes(30, 1.0, (1.0,), 0.0, 0.0), StepTimes(10, 5.0, (5.0,), 0.0, 0.0)])
    assert found is not None
    assert found.step_time_s == pytest.approx(2.0)


def test_utilisation_is_flops_per_step_against_the_peak() -> None:
    found = classify([window(0.5, (0.5,))], flops_per_s=1e12, peak=(4e12, "a device"))
    assert found is not None
    assert found.flops_utilisation == pytest.approx(0.5)
    assert "50% of a device" in str(found)


def test_a_gpu_whose_peak_is_not_known_is_named() -> None:
    found = classify([window(0.5, (0.5,))], flops_per_s=1e12, no_peak="that of NVIDIA A10G is not in the table")
    assert found is not None
    assert found.flops_utilisation is None
    assert str(found).endswith("model FLOPs not compared with the peak: that of NVIDIA A10G is not in the table")


def test_without_a_step_there_is_no_verdict() -> None:
    assert classify([]) is None
