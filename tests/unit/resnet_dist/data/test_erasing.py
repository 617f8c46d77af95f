"""Random erasing: torchvision's distribution and pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from resnet_dist.data.erasing import RandomErasing, inside

POSITIONS = np.arange(20_000, dtype=np.int64)
HEIGHT, WIDTH = 48, 64
LABELS = torch.zeros(4, dtype=torch.int64)


def test_boxes_have_the_distribution_of_torchvision() -> None:
    boxes = RandomErasing(1.0, seed=0).draw(POSITIONS, HEIGHT, WIDTH)
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    torch.manual_seed(0)
    theirs = v2.RandomErasing(p=1.0)
    drawn = [theirs.make_params([torch.empty(3, HEIGHT, WIDTH)]) for _ in range(2000)]
    for own, names in ((heights, "h"), (widths, "w"), (boxes[:, 0], "i"), (boxes[:, 1], "j")):
        expected = np.array([params[names] for params in drawn], dtype=np.float64)
        sigma = expected.std() / math.sqrt(len(drawn))
        assert abs(own.mean() - expected.mean()) < 4 * sigma
        assert abs(own.std() / expected.std() - 1) < 0.08
    assert (heights < HEIGHT).all()
    assert (widths < WIDTH).all()
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= HEIGHT
    assert boxes[:, 3].max() <= WIDTH


def test_the_area_is_uniform_and_boxes_reach_every_edge() -> None:
    boxes = RandomErasing(1.0, seed=0).draw(POSITIONS, 1000, 1000)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1e6
    assert 0.0195 < area.min() < 0.021
    assert 0.329 < area.max() < 0.3305
    counts = np.histogram(area, bins=10, range=(0.02, 0.33))[0]
    # all but the largest, which do not fit with the most extreme aspects, are equally likely
    assert abs(counts[:8] / counts[:8].mean() - 1).max() < 0.1


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_images_are_erased_with_the_probability(probability: float) -> None:
    boxes = RandomErasing(probability, seed=0).draw(POSITIONS, HEIGHT, WIDTH)
    erased = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).mean()
    assert abs(erased - probability) <= 4 * math.sqrt(probability * (1 - probability) / len(POSITIONS))


def test_boxes_are_functions_of_the_position() -> None:
    erasing, shuffled = RandomErasing(0.5, seed=2), np.random.default_rng(0).permutation(POSITIONS)
    boxes = erasing.draw(POSITIONS, HEIGHT, WIDTH)
    assert np.array_equal(erasing.draw(shuffled, HEIGHT, WIDTH), boxes[shuffled])
    assert not np.array_equal(RandomErasing(0.5, seed=3).draw(POSITIONS, HEIGHT, WIDTH), boxes)


def test_erased_pixels_are_those_of_torchvision() -> None:
    images = torch.randn(4, 3, HEIGHT, WIDTH).to(memory_format=torch.channels_last)
    erasing = RandomErasing(0.75, seed=1)
    boxes = erasing.draw(np.arange(4), HEIGHT, WIDTH)
    expected = [
        v2.functional.erase(image, int(top), int(left), int(bottom - top), int(right - left), torch.zeros(1))
        for image, (top, left, bottom, right) in zip(images.clone(), boxes, strict=True)
    ]
    erased, labels = erasing.apply(images, LABELS, torch.from_numpy(boxes))
    assert torch.equal(erased, torch.stack(expected))
    assert (erased == 0).any()
    assert erased.is_contiguous(memory_format=torch.channels_last)
    assert labels is LABELS


def test_images_without_a_box_keep_their_bits() -> None:
    images = torch.randn(4, 3, HEIGHT, WIDTH)
    boxes = torch.from_numpy(RandomErasing(0.0, seed=1).draw(np.arange(4), HEIGHT, WIDTH))
    assert torch.equal(RandomErasing(0.0, seed=1).apply(images.clone(), LABELS, boxes)[0], images)


def test_inside_leaves_out_the_last_row_and_column() -> None:
    [[mask]] = inside(torch.tensor([[1.0, 0.0, 3.0, 2.0]]), 4, 3)
    assert mask.int().tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]
