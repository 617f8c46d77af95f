"""The learning rate at its corners against closed forms, and what holds for every schedule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from resnet_dist.errors import RecipeError
from resnet_dist.recipe import rules
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schedule import Schedule, build_schedule, cosine, polynomial
from resnet_dist.recipe.schema import ScheduleRecipe


def _steps(count: int) -> Duration:
    return Duration(Fraction(count), "steps")


def _build(total: int = 100, **recipe: Any) -> Schedule:
    """Ten steps of warm-up from 0.5 to a peak of 4."""
    given: dict[str, Any] = {"peak_lr": 4.0, "warmup": _steps(10), "warmup_start_lr": 0.5} | recipe
    return build_schedule(ScheduleRecipe(**given), batch_size=256, num_samples=2560, total_steps=total)


@pytest.mark.parametrize("decay", ["constant", "cosine", "polynomial"])
def test_warm_up_is_a_line_that_reaches_the_peak_with_its_last_step(decay: str) -> None:
    schedule = _build(decay=decay)
    for k in range(10):
        assert schedule(k) == pytest.approx(0.5 + 3.5 * (k + 1) / 10, rel=1e-15)
    assert schedule(9) == schedule(10) == 4.0


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert _build(warmup=_steps(0), warmup_start_lr=0.0, decay="cosine")(0) == 4.0


def test_cosine_follows_its_formula() -> None:
    schedule = _build(decay="cosine", end_lr=1.0)
    for k in (10, 11, 54, 99):
        expected = 1.0 + 3.0 * (1 + math.cos(math.pi * (k - 10) / 90)) / 2
        assert schedule(k) == pytest.approx(expected, rel=1e-15)
    assert schedule(55) == 2.5  # half way down at half of the time after warm-up
    assert schedule(100) == 1.0


def test_cosine_has_its_corners_exactly() -> None:
    assert [cosine(progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]


def test_polynomial_has_power_two_where_none_is_given() -> None:
    schedule = _build(decay="polynomial", end_lr=1e-4)
    for k in (10, 55, 99):
        assert schedule(k) == pytest.approx(1e-4 + (4 - 1e-4) * (1 - (k - 10) / 90) ** 2, rel=1e-15)
    assert schedule(100) == 1e-4


def test_polynomial_of_power_one_is_a_line() -> None:
    schedule = _build(decay="polynomial", power=1.0)
    assert schedule(55) == 2.0
    assert schedule(99) == pytest.approx(4.0 / 90, rel=1e-12)


def test_steps_fall_by_gamma_at_each_milestone() -> None:
    """Goyal et al. 2017: 0.1 at epochs 30, 60 and 80 of 90; ten steps an epoch here."""
    epochs = tuple(Duration(Fraction(count), "epochs") for count in (30, 60, 80))
    schedule = _build(total=900, decay="step", milestones=epochs)
    at = {k: schedule(k) for k in (10, 299, 300, 599, 600, 799, 800, 899)}
    expected = {10: 4.0, 299: 4.0, 300: 0.4, 599: 0.4, 600: 0.04, 799: 0.04, 800: 0.004, 899: 0.004}
    assert at == pytest.approx(expected, rel=1e-14)


def test_gamma_can_be_chosen() -> None:
    assert _build(decay="step", milestones=(_steps(20), _steps(30)), gamma=0.5)(30) == 1.0


def test_milestones_and_gamma_are_for_the_step_decay_alone() -> None:
    schedule = _build(decay="cosine", milestones=(_steps(30),), gamma=0.5)
    assert (schedule.milestones, schedule.gamma) == ((), 1.0)


def test_a_schedule_of_a_peak_alone_is_flat() -> None:
    schedule = Schedule(peak_lr=2.0, total_steps=10)
    assert schedule == Schedule(2.0, 10, 0, 0.0, 0.0, None, (), 1.0)
    assert [schedule(k) for k in (0, 9, 10)] == [2.0, 2.0, 2.0]


def test_a_constant_schedule_stays_at_the_peak() -> None:
    schedule = _build(decay="constant")
    assert {schedule(k) for k in range(10, 100)} == {4.0}


def test_warm_up_counts_in_any_unit() -> None:
    """5 epochs of 1,281,167 samples at a batch of 8,192 are 781.96 steps: 782."""
    recipe = ScheduleRecipe(peak_lr=17.0, warmup=Duration.parse("5 epochs"), decay="polynomial", end_lr=1e-4)
    schedule = build_schedule(recipe, batch_size=8192, num_samples=1281167, total_steps=6882)
    assert schedule.warmup_steps == 782
    assert schedule(0) == pytest.approx(17.0 / 782, rel=1e-15)
    assert schedule(781) == schedule(782) == 17.0


def test_a_base_lr_is_scaled_by_the_batch() -> None:
    recipe = ScheduleRecipe(base_lr=0.1, decay="constant")
    assert build_schedule(recipe, batch_size=8192, num_samples=1, total_steps=10)(0) == 3.2


def test_a_step_past_the_end_has_the_end_lr() -> None:
    assert _build(decay="cosine", end_lr=0.25)(1000) == 0.25


def test_a_run_that_ends_within_warm_up_only_warms_up() -> None:
    schedule = _build(total=10, decay="cosine")
    assert schedule(9) == 4.0
    assert schedule(10) == 0.0
    assert [(corner.step, corner.name) for corner in schedule.corners()] == [
        (0, "first step"),
        (5, "half way"),
        (9, "last step"),
        (9, "end of warm-up"),
    ]


def test_half_way_of_an_odd_number_of_steps_is_a_whole_step() -> None:
    assert [corner.step for corner in _build(total=101).corners() if corner.name == "half way"] == [50]


def test_corners_name_what_is_worth_showing() -> None:
    schedule = _build(decay="step", milestones=(_steps(30), _steps(90)))
    assert [(corner.step, corner.name) for corner in schedule.corners()] == [
        (0, "first step"),
        (9, "end of warm-up"),
        (30, "milestone 1"),
        (50, "half way"),
        (90, "milestone 2"),
        (99, "last step"),
    ]
    assert all(corner.learning_rate == schedule(corner.step) for corner in schedule.corners())


@pytest.fixture
def user_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_decay_of_schedule_test.py").write_text(
        "def line(progress):\n    return 1 - progress\n"
        "def wild(progress):\n    return 2.0\n"
        "def word(progress):\n    return 'x'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "users_decay_of_schedule_test"


def test_a_users_function_of_the_progress_lies_between_end_and_peak(user_decay: str) -> None:
    schedule = _build(decay=f"{user_decay}:line", end_lr=1.0)
    assert [schedule(k) for k in (10, 55, 100)] == [4.0, 2.5, 1.0]


@pytest.mark.parametrize(("function", "answer"), [("wild", "2.0"), ("word", "'x'")])
def test_a_users_function_that_leaves_zero_to_one_is_refused(user_decay: str, function: str, answer: str) -> None:
    with pytest.raises(RecipeError, match=rf"returned {answer} for a progress of 0\.5") as caught:
        _build(decay=f"{user_decay}:{function}")(55)
    assert caught.value.key == "schedule.decay"
    assert caught.value.allowed == "a number in [0, 1]: 1 is the peak LR, 0 the end LR"


def test_a_users_function_that_cannot_be_loaded_is_refused(user_decay: str) -> None:
    with pytest.raises(RecipeError, match="has no absent") as caught:
        _build(decay=f"{user_decay}:absent")
    assert caught.value.key == "schedule.decay"


def test_an_unknown_decay_is_refused() -> None:
    with pytest.raises(RecipeError, match="'linear' does not name a function") as caught:
        _build(decay="linear")
    assert caught.value.key == "schedule.decay"


def test_every_decay_that_the_rules_allow_can_be_built() -> None:
    assert [_build(decay=name, end_lr=0.1)(9) for name in rules.DECAY_NAMES] == [4.0] * 6


# --- the decays against torch's schedulers, which have a state


def torchs(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int, peak: float = 4.0) -> list[float]:
    """The LRs of a scheduler of torch over `steps` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(total: int = 91, **recipe: Any) -> list[float]:
    """Without warm-up: all steps, and the LR that one more would have."""
    schedule = _build(total - 1, warmup=_steps(0), warmup_start_lr=0.0, **recipe)
    return [schedule(k) for k in range(total)]


TORCHS: list[tuple[dict[str, Any], Callable[[torch.optim.Optimizer], LRScheduler]]] = [
    ({"decay": "constant"}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    ({"decay": "cosine", "end_lr": 0.5}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=90, eta_min=0.5)),
    ({"decay": "polynomial"}, lambda o: lr_scheduler.PolynomialLR(o, total_iters=90, power=2.0)),
    ({"decay": "polynomial", "power": 0.9}, lambda o: lr_scheduler.PolynomialLR(o, total_iters=90, power=0.9)),
    ({"decay": "exponential", "end_lr": 4e-3}, lambda o: lr_scheduler.ExponentialLR(o, gamma=1e-3 ** (1 / 90))),
    (
        {"decay": "step", "milestones": (_steps(30), _steps(60)), "gamma": 0.2},
        lambda o: lr_scheduler.MultiStepLR(o, [30, 60], gamma=0.2),
    ),
    (
        {"decay": "trapezoid", "end_lr": 1.0, "decay_length": _steps(30)},
        lambda o: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.ConstantLR(o, factor=1.0), lr_scheduler.LinearLR(o, 1.0, end_factor=0.25, total_iters=30)],
            milestones=[60],
        ),
    ),
]


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # of torch's SequentialLR
@pytest.mark.parametrize(("recipe", "make"), TORCHS, ids=[str(recipe["decay"]) for recipe, _ in TORCHS])
def test_a_decay_is_that_of_torchs_scheduler(
    recipe: dict[str, Any], make: Callable[[torch.optim.Optimizer], LRScheduler]
) -> None:
    assert ours(**recipe) == pytest.approx(torchs(make, 91), rel=1e-12, abs=1e-12)


def test_warm_up_is_that_of_torchs_scheduler_one_step_ahead() -> None:
    """Torch's first step has the LR before warm-up, ours the first LR on the way to the peak."""
    expected = torchs(lambda o: lr_scheduler.LinearLR(o, 0.5 / 4.0, total_iters=10), 12)
    schedule = _build(decay="constant")
    assert [schedule(k) for k in range(11)] == pytest.approx(expected[1:], rel=1e-12)


def test_exponential_loses_the_same_fraction_in_each_step() -> None:
    schedule = _build(decay="exponential", end_lr=4e-6)
    ratios = [schedule(k + 1) / schedule(k) for k in range(10, 100)]
    assert ratios == pytest.approx([1e-6 ** (1 / 90)] * 90, rel=1e-12)
    assert schedule(55) == pytest.approx(math.sqrt(4.0 * 4e-6), rel=1e-12)
    assert schedule(100) == 4e-6


def test_a_trapezoid_is_constant_until_its_line_down() -> None:
    schedule = _build(decay="trapezoid", end_lr=1.0, decay_length=_steps(30))
    assert {schedule(k) for k in range(9, 71)} == {4.0}
    for k in range(70, 101):
        assert schedule(k) == pytest.approx(1.0 + 3.0 * (100 - k) / 30, rel=1e-12)
    assert [(c.step, c.name) for c in schedule.corners() if "decay" in c.name] == [(70, "start of decay")]


@pytest.mark.parametrize("duration", ["101 steps", "9.9 epochs", "25370 samples"])
def test_a_trapezoid_decays_over_the_last_20_percent_where_no_length_is_given(duration: str) -> None:
    total = Duration.parse(duration)
    steps = total.steps(batch_size=256, num_samples=2560)
    given = _build(total=steps, decay="trapezoid", decay_length=Duration.parse("20 %").of(total))
    default = _build(total=steps, decay="trapezoid")
    assert [default(k) for k in range(steps)] == [given(k) for k in range(steps)]
    assert given.decay_start == steps - math.ceil(steps / 5)


def test_a_trapezoid_for_a_longer_run_has_the_same_start() -> None:
    """So that a run can go on from the checkpoint before its decay: its schedule is that of the longer one so far."""
    short, long = (_build(total=total, decay="trapezoid", decay_length=_steps(20)) for total in (100, 300))
    assert [short(k) for k in range(80)] == [long(k) for k in range(80)]


@given(
    decay=st.sampled_from(rules.DECAY_NAMES),
    warmup=st.integers(0, 50),
    after=st.integers(1, 200),
    peak=st.floats(1e-3, 100.0),
    end=st.floats(0.0, 1.0),
    power=st.floats(0.5, 4.0),
)
def test_every_schedule_rises_to_its_peak_and_never_rises_again(
    decay: str, warmup: int, after: int, peak: float, end: float, power: float
) -> None:
    recipe = ScheduleRecipe(
        peak_lr=peak,
        warmup=_steps(warmup),
        decay=decay,
        power=power,
        end_lr=max(end, 1e-6) * peak,
        milestones=(_steps(warmup + 1),),
    )
    schedule = build_schedule(recipe, batch_size=1, num_samples=1, total_steps=warmup + after)
    rates = [schedule(k) for k in range(warmup + after + 1)]
    slack = 1e-12 * peak  # rounding of (peak - end) + end
    rising, falling = rates[: warmup + 1], rates[warmup:]
    assert all(a <= b + slack for a, b in itertools.pairwise(rising))
    assert all(a >= b - slack for a, b in itertools.pairwise(falling))
    assert rates[warmup] == pytest.approx(peak, rel=1e-12)
    assert all(0 <= rate <= peak + slack for rate in rates)


@given(progress=st.floats(0.0, 1.0), power=st.floats(0.1, 5.0))
def test_decays_stay_between_zero_and_one(progress: float, power: float) -> None:
    assert 0.0 <= cosine(progress) <= 1.0
    assert 0.0 <= polynomial(power)(progress) <= 1.0
