"""Operations on single images: torchvision's pixels, and choices with torchvision's distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from resnet_dist.data.policies import (
    NUM_LEVELS,
    OPERATIONS,
    SIGNED,
    ColorJitter,
    RandAugment,
    Steps,
    TrivialAugment,
    _strengths,
    apply,
)

SIZE = 40
POSITIONS = np.arange(20_000, dtype=np.int64)
NAME_OF = {operation: name for name, operation in OPERATIONS.items()}


def image(seed: int = 0) -> Tensor:
    """A smooth image with noise, uint8 [3, SIZE, SIZE], that uses half of the values."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.rand(3, 8, 8, generator=generator).mul(120)[None]
    smooth = torch.nn.functional.interpolate(waves, size=(SIZE, SIZE), mode="bilinear")[0]
    return (smooth + torch.rand(3, SIZE, SIZE, generator=generator) * 8 + 30).to(torch.uint8)


# torchvision's choices, drawn as its `forward` methods draw them


def drawn_by_randaugment(num_ops: int, magnitude: int) -> Steps:
    table = _strengths(shear=0.3, translate=150.0 / 331.0 * SIZE, rotate=30.0, color=0.9, posterize=4)
    return [drawn_operation(table, lambda: magnitude) for _ in range(num_ops)]


def drawn_by_trivialaugment() -> Steps:
    table = _strengths(shear=0.99, translate=32.0, rotate=135.0, color=0.99, posterize=6)
    return [drawn_operation(table, lambda: int(torch.randint(NUM_LEVELS, ())))]


def drawn_operation(table: NDArray[np.float64], level: object) -> tuple[object, float]:
    number = int(torch.randint(len(OPERATIONS), ()))
    name = list(OPERATIONS)[number]
    has_levels = name not in ("Identity", "AutoContrast", "Equalize")
    strength = float(table[number, level()]) if has_levels else 0.0
    if name in SIGNED and torch.rand(()) <= 0.5:
        strength *= -1
    return OPERATIONS[name], strength


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_randaugment_has_torchvisions_pixels(magnitude: int) -> None:
    theirs = v2.RandAugment(num_ops=2, magnitude=magnitude)
    for seed in range(40):
        torch.manual_seed(seed)
        expected = theirs(image(seed))
        torch.manual_seed(seed)
        assert torch.equal(apply(image(seed), drawn_by_randaugment(2, magnitude)), expected)


def test_trivialaugment_has_torchvisions_pixels() -> None:
    theirs = v2.TrivialAugmentWide()
    for seed in range(150):
        torch.manual_seed(seed)
        expected = theirs(image(seed))
        torch.manual_seed(seed)
        assert torch.equal(apply(image(seed), drawn_by_trivialaugment()), expected)


def test_color_jitter_has_torchvisions_pixels() -> None:
    theirs = v2.ColorJitter(0.4, 0.4, 0.4)
    for seed, steps in enumerate(ColorJitter(0.4, seed=3).steps(POSITIONS[:20], SIZE)):
        names = [operation.__name__.removeprefix("adjust_") for operation, _ in steps]
        factors = {f"{name}_factor": factor for name, (_, factor) in zip(names, steps, strict=True)}
        order = [("brightness", "contrast", "saturation").index(name) for name in names]
        expected = theirs.transform(image(seed), {"fn_idx": order, "hue_factor": None, **factors})
        assert torch.equal(apply(image(seed), steps), expected)


@pytest.mark.parametrize("policy", [RandAugment(2, 9, seed=1), TrivialAugment(seed=1)])
def test_each_operation_is_equally_likely_at_each_place(policy: RandAugment | TrivialAugment) -> None:
    chosen = policy.steps(POSITIONS, SIZE)
    for place in range(len(chosen[0])):
        numbers = [list(OPERATIONS).index(NAME_OF[steps[place][0]]) for steps in chosen]
        assert_uniform(np.bincount(numbers, minlength=len(OPERATIONS)))


def test_randaugments_translations_are_in_proportion_to_the_resolution() -> None:
    policy = RandAugment(2, 9, seed=1)
    pairs = zip(policy.steps(POSITIONS[:100], 100), policy.steps(POSITIONS[:100], 200), strict=True)
    at_both = [both for steps in pairs for both in zip(*steps, strict=True)]
    assert all(small[0] is large[0] for small, large in at_both)
    factors = {NAME_OF[small[0]]: large[1] / small[1] for small, large in at_both if small[1]}
    assert factors.pop("TranslateX") == pytest.approx(2)
    assert factors.pop("TranslateY") == pytest.approx(2)
    assert set(factors.values()) == {1.0}


def test_the_operations_of_an_image_are_independent() -> None:
    chosen = RandAugment(2, 9, seed=1).steps(POSITIONS, SIZE)
    names = list(OPERATIONS)
    pairs = [names.index(NAME_OF[a[0]]) * len(names) + names.index(NAME_OF[b[0]]) for a, b in chosen]
    assert_uniform(np.bincount(pairs, minlength=len(names) ** 2))


def test_trivialaugment_takes_each_strength_and_sign_equally_often() -> None:
    chosen = TrivialAugment(2).steps(POSITIONS, SIZE)
    rotations = [strength for [(operation, strength)] in chosen if NAME_OF[operation] == "Rotate"]
    levels = np.rint(np.abs(rotations) / 135.0 * (NUM_LEVELS - 1)).astype(int)
    assert_uniform(np.bincount(levels, minlength=NUM_LEVELS))
    assert_uniform(np.bincount(np.signbit(rotations).astype(int), minlength=2))


def test_only_signed_operations_have_negative_strengths() -> None:
    negative = {NAME_OF[op] for steps in RandAugment(2, 9, seed=1).steps(POSITIONS, SIZE) for op, x in steps if x < 0}
    assert negative == SIGNED


def test_color_jitter_draws_uniform_factors_and_orders() -> None:
    chosen = ColorJitter(0.4, seed=5).steps(POSITIONS, SIZE)
    orders, factors = [], {}
    for steps in chosen:
        names = [operation.__name__ for operation, _ in steps]
        orders.append("".join(name[7] for name in names))
        for name, (_, factor) in zip(names, steps, strict=True):
            factors.setdefault(name, []).append(factor)
    assert_uniform(np.unique(orders, return_counts=True)[1])
    assert len(set(orders)) == 6
    assert len(factors) == 3
    for values in factors.values():
        assert 0.6 <= min(values) <= max(values) < 1.4
        assert_uniform(np.histogram(values, bins=20, range=(0.6, 1.4))[0])


def test_factors_of_color_jitter_are_not_negative() -> None:
    factors = [factor for steps in ColorJitter(3.0, seed=5).steps(POSITIONS[:1000], SIZE) for _, factor in steps]
    assert 0.0 <= min(factors) < 0.1
    assert 3.9 < max(factors) < 4.0


@pytest.mark.parametrize(
    "policy",
    [ColorJitter(0.4, seed=7), RandAugment(3, 5, seed=7), TrivialAugment(seed=7)],
    ids=lambda p: type(p).__name__,
)
def test_choices_are_functions_of_the_position(policy: ColorJitter | RandAugment | TrivialAugment) -> None:
    shuffled = np.random.default_rng(0).permutation(POSITIONS[:200])
    chosen = policy.steps(POSITIONS[:200], SIZE)
    assert policy.steps(shuffled, SIZE) == [chosen[position] for position in shuffled]


def assert_uniform(counts: NDArray[np.int64]) -> None:
    """Within 4 standard deviations of the chi-square distribution; seeds are fixed, so this is exact."""
    expected, free = counts.sum() / len(counts), len(counts) - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - free) < 4 * np.sqrt(2 * free)
