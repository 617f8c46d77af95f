"""How well the time that is left is estimated, on traces whose end is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest

from resnet_dist.recipe.durations import Every
from resnet_dist.recipe.resolutions import Resolutions
from resnet_dist.telemetry.time_left import TimeLeft

NEVER = Every(Fraction(10**9), 1)
TOTAL = 400


def estimates(
    left: TimeLeft,
    step_s: Callable[[int], float],
    *,
    first_step: int = 0,
    evaluate: tuple[Every, float] = (NEVER, 0.0),
    save: tuple[Every, float] = (NEVER, 0.0),
) -> Iterator[tuple[int, float, float]]:
    """(step, estimate, true time) after each step of a loop that takes these times."""
    moments: list[tuple[int, float | None, float]] = []
    now = 0.0
    for step in range(first_step + 1, TOTAL + 1):
        now += step_s(step)
        left.add_step(step, step_s(step))
        moments.append((step, left.seconds(), now))
        for (every, seconds), add in ((evaluate, left.add_evaluation), (save, left.add_save)):
            if every.fires_after(step) or step == TOTAL:
                now += seconds
                add(seconds)
    for step, estimate, moment in moments:
        assert estimate is not None
        yield step, estimate, now - moment


def largest_error(found: Iterator[tuple[int, float, float]], first: int = TOTAL // 20) -> float:
    """Of the time that is left, from step `first` until 5 % of the steps are left, where seconds decide."""
    return max(abs(estimate - true) / true for step, estimate, true in found if first <= step <= TOTAL * 0.95)


@pytest.mark.parametrize("name", ["constant", "slow first steps", "noise", "evaluations", "saves", "all"])
def test_the_time_left_is_right_within_10_percent_after_5_percent_of_the_run(name: str) -> None:
    every_epoch = Every(Fraction(40), 1)
    evaluate = (every_epoch, 5.0) if name in ("evaluations", "all") else (NEVER, 0.0)
    save = (every_epoch, 1.0) if name in ("saves", "all") else (NEVER, 0.0)

    def step_s(step: int) -> float:
        slow = 30.0 if step == 1 else 2.0 if step <= 3 else 0.0
        noise = (step * 7919 % 13 - 6) / 20  # 30 % to both sides
        return 1.0 + slow * (name in ("slow first steps", "all")) + noise * (name in ("noise", "all"))

    left = TimeLeft(TOTAL, evaluate=evaluate[0], checkpoint=save[0], evaluation_steps=4.0 if evaluate[1] else 0.0)
    assert largest_error(estimates(left, step_s, evaluate=evaluate, save=save)) < 0.1


def test_steps_at_larger_images_that_come_later_count_by_their_pixels_and_then_by_their_times() -> None:
    sizes = Resolutions((0, 100, 300), (128, 160, 192))

    def step_s(step: int) -> float:
        return (sizes.at(step - 1) / 128) ** 2 * (1.05 if step > 100 else 1.0) + 2.0 * (step in (101, 301))

    def left(sizes: Resolutions | None) -> TimeLeft:
        return TimeLeft(TOTAL, evaluate=NEVER, checkpoint=NEVER, resolutions=sizes)

    assert largest_error(estimates(left(sizes), step_s)) < 0.1
    assert largest_error(estimates(left(None), step_s)) > 0.3
    known = [(estimate, true) for step, estimate, true in estimates(left(sizes), step_s) if step in (150, 350)]
    for estimate, true in known:
        assert estimate == pytest.approx(true, rel=0.01)  # the first larger step, which is slow, does not count


def test_a_restart_counts_what_is_left_only() -> None:
    every = Every(Fraction(40), 1)
    left = TimeLeft(TOTAL, evaluate=every, checkpoint=NEVER, first_step=200, evaluation_steps=6.0, evaluates_first=True)
    left.add_evaluation(5.0)
    slow = {201: 60.0, 202: 5.0}
    found = estimates(left, lambda step: slow.get(step, 1.0), first_step=200, evaluate=(every, 5.0))
    assert largest_error(found, 200 + 10) < 0.01


def test_a_machine_that_becomes_slower_is_followed() -> None:
    left = TimeLeft(TOTAL, evaluate=NEVER, checkpoint=NEVER)
    found = {step: (estimate, true) for step, estimate, true in estimates(left, lambda s: 1.0 if s <= 100 else 2.0)}
    estimate, true = found[220]
    assert estimate == pytest.approx(true, rel=0.1)


def test_nothing_is_known_before_the_first_step_and_nothing_is_left_at_the_end() -> None:
    left = TimeLeft(10, evaluate=NEVER, checkpoint=NEVER)
    assert left.seconds() is None
    left.add_step(1, 4.0)
    assert left.seconds() == 36.0
    for step in range(2, 11):
        left.add_step(step, 1.0)
    for add in (left.add_evaluation, left.add_save):
        add(1.0)
    assert left.seconds() == 0.0
