"""Mixup and CutMix: torchvision's pixels and labels, and the distributions of the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from resnet_dist.data.mixing import PairMixing, symmetric_beta
from resnet_dist.data.random_bits import Purpose, uniform

NUM_CLASSES = 5
POSITIONS = np.arange(40_000, dtype=np.int64)
SIZE = 32
OUTSIDE, TOP, LEFT, BOTTOM, RIGHT, IN_LABEL = range(6)


def drawn(
    mixup: float, cutmix: float, positions: NDArray[np.int64] = POSITIONS, size: int = SIZE
) -> NDArray[np.float64]:
    return PairMixing(mixup, cutmix, NUM_CLASSES, seed=4).draw(positions, size, size)


def batch(num: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return images.to(memory_format=torch.channels_last), torch.randint(NUM_CLASSES, (num,), generator=generator)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 8.0])
def test_numbers_have_the_beta_distribution(alpha: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    num = 50_000
    draws = uniform(1, np.arange(num), Purpose.MIXING, 2)
    numbers = np.sort(symmetric_beta(np.full(num, alpha), draws[:, 0], draws[:, 1]))
    # Kolmogorov and Smirnov's distance, at points where rounding to 1 does not count: 1 - 1e-20 is 1.
    points = np.linspace(1e-6, 1 - 1e-6, 2001)
    distance = np.abs(np.searchsorted(numbers, points) / num - stats.beta(alpha, alpha).cdf(points)).max()
    assert distance < 1.63 / math.sqrt(num)  # exceeded with a probability of 1 %; the seed is fixed
    assert not np.isnan(numbers).any()
    assert 0 <= numbers[0] <= numbers[-1] <= 1


def test_the_images_of_a_pair_are_mixed_with_the_same_numbers() -> None:
    numbers = drawn(0.2, 1.0)
    assert np.array_equal(numbers[::2], numbers[1::2])


def test_numbers_are_a_function_of_the_pair() -> None:
    numbers = drawn(0.2, 1.0, POSITIONS[:100])
    assert np.array_equal(drawn(0.2, 1.0, POSITIONS[20:40]), numbers[20:40])
    pairs = np.random.default_rng(0).permutation(50)
    shuffled = np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel()
    assert np.array_equal(drawn(0.2, 1.0, shuffled), numbers[shuffled])


def test_half_of_the_pairs_are_mixed_in_either_way_if_both_are_on() -> None:
    cuts = drawn(1.0, 1.0)[::2, OUTSIDE] == 0
    assert abs(cuts.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(cuts))
    assert (drawn(0.0, 1.0)[:, OUTSIDE] == 0).all()
    assert (drawn(1.0, 0.0)[:, OUTSIDE] > 0).all()


def test_each_way_has_its_own_alpha() -> None:
    numbers = drawn(8.0, 0.5)[::2]
    mixed = numbers[numbers[:, OUTSIDE] > 0, OUTSIDE]
    assert abs(mixed.var() - 1 / (4 * (2 * 8.0 + 1))) < 0.001  # of Beta(8, 8)
    assert abs(mixed.mean() - 0.5) < 0.01


def test_boxes_are_those_of_cutmix() -> None:
    """The formulas of algorithm A1 and of the authors' code, for each pair by itself."""
    draws = uniform(4, POSITIONS[:2000:2], Purpose.MIXING, 5)
    for own, numbers in zip(draws, drawn(0.0, 1.0, POSITIONS[:2000])[::2], strict=True):
        lam = symmetric_beta(np.ones(1), own[:1], own[1:2])[0]
        cut = int(SIZE * math.sqrt(1.0 - lam))
        centre_y, centre_x = int(own[2] * SIZE), int(own[3] * SIZE)
        box = [max(centre_y - cut // 2, 0), max(centre_x - cut // 2, 0)]
        box += [min(centre_y + cut // 2, SIZE), min(centre_x + cut // 2, SIZE)]
        assert numbers[TOP:IN_LABEL].tolist() == box
        area = (box[2] - box[0]) * (box[3] - box[1])
        assert numbers[IN_LABEL] == area / SIZE**2


def test_centres_are_uniform() -> None:
    numbers = drawn(0.0, 1.0, size=1000)[::2]
    inner = (numbers[:, [TOP, LEFT]] > 0).all(1) & (numbers[:, [BOTTOM, RIGHT]] < 1000).all(1)
    small = inner & (numbers[:, IN_LABEL] < 0.01)
    rows = (numbers[small, TOP] + numbers[small, BOTTOM]) / 2
    counts = np.histogram(rows, bins=5, range=(100, 900))[0]
    assert abs(counts / counts.mean() - 1).max() < 0.3


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_pixels_and_labels_are_torchvisions(mixup: float, cutmix: float) -> None:
    images, labels = batch()
    mixing = PairMixing(mixup, cutmix, NUM_CLASSES, seed=4)
    numbers = mixing.draw(np.arange(8), SIZE, SIZE)
    mixed, targets = mixing.apply(images.clone(), labels, torch.from_numpy(numbers))
    for first in range(0, 8, 2):  # torchvision mixes neighbours in a ring: in a batch of 2, each other
        pair, own = slice(first, first + 2), numbers[first]
        if own[OUTSIDE] > 0:
            theirs, params = v2.MixUp(num_classes=NUM_CLASSES), {"lam": 1.0 - own[OUTSIDE]}
        else:
            box = tuple(int(own[column]) for column in (LEFT, TOP, RIGHT, BOTTOM))
            theirs, params = v2.CutMix(num_classes=NUM_CLASSES), {"box": box, "lam_adjusted": 1.0 - own[IN_LABEL]}
        params |= {"labels": labels[pair], "batch_size": 2}
        assert torch.allclose(mixed[pair], theirs.transform(images[pair], params), rtol=0, atol=1e-14)
        expected = theirs.transform(params["labels"], params).double()
        assert torch.allclose(targets[pair], expected, rtol=0, atol=1e-6)  # torchvision's labels are float32
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_mixup_alone_needs_no_mask_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = batch()
    numbers = torch.from_numpy(drawn(0.5, 0.0, POSITIONS[:8]))
    with_boxes, without = (PairMixing(0.5, cutmix, NUM_CLASSES, seed=4) for cutmix in (1.0, 0.0))
    expected = with_boxes.apply(images, labels, numbers)
    monkeypatch.setattr("resnet_dist.data.mixing.inside", None)
    found = without.apply(images, labels, numbers)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_targets_are_distributions_over_the_classes() -> None:
    images, labels = batch()
    mixing = PairMixing(0.4, 1.0, NUM_CLASSES, seed=4)
    numbers = torch.from_numpy(mixing.draw(np.arange(8), SIZE, SIZE))
    for dtype in (torch.float32, torch.float64):
        mixed, targets = mixing.apply(images.to(dtype), labels, numbers)
        assert mixed.dtype == targets.dtype == dtype
        assert targets.shape == (8, NUM_CLASSES)
        assert torch.allclose(targets.sum(1), torch.ones(8, dtype=dtype), rtol=0, atol=1e-6)


def test_a_pair_that_is_not_mixed_keeps_its_bits() -> None:
    images, labels = batch(2)
    mixed, targets = PairMixing(0.2, 0.0, NUM_CLASSES, 0).apply(images.clone(), labels, torch.zeros(2, 6).double())
    assert torch.equal(mixed, images)
    assert targets.argmax(1).tolist() == labels.tolist()


def test_the_mean_of_a_pair_stays() -> None:
    images, labels = batch(2)
    mixing = PairMixing(1.0, 0.0, NUM_CLASSES, seed=9)
    mixed, _ = mixing.apply(images.clone(), labels, torch.from_numpy(mixing.draw(np.arange(2), SIZE, SIZE)))
    assert torch.allclose(mixed.mean(0), images.mean(0), rtol=0, atol=1e-14)
    assert not torch.allclose(mixed, images, atol=1e-2)
