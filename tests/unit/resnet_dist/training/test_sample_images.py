"""Images of the first step: those that the network sees, and nothing of the training changes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resnet_dist.data.loader import HostBatch
from resnet_dist.engines.protocol import MicroBatch
from resnet_dist.recipe.schema import DataRecipe
from resnet_dist.training.sample_images import Captioned, SampleImages

DATA = DataRecipe(root="x", mean=(0.5, 0.25, 0.125), std=(0.5, 0.25, 0.2))
CLASSES = ("cat", "dog", "fox")


def batch(first: int, labels: Tensor) -> HostBatch:
    """Images whose pixels are their positions."""
    positions = torch.arange(first, first + len(labels))
    images = positions.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 6)
    return HostBatch(images.contiguous(memory_format=torch.channels_last), labels, positions, 0)


def normalised(host: HostBatch) -> MicroBatch:
    mean, std = (torch.tensor(values)[:, None, None] for values in (DATA.mean, DATA.std))
    return MicroBatch((host.images.float() / 255 - mean) / std, host.labels)


def test_the_first_images_of_the_step_come_back_as_they_were_before_normalisation() -> None:
    shown: list[Captioned] = []
    to_device = SampleImages(normalised, DATA, CLASSES, 3, 2, shown.extend)
    labels = torch.tensor([2, 0])
    batches = [batch(first, labels) for first in (10, 12, 14)]
    passed = [to_device(one) for one in batches]
    assert [caption for caption, _ in shown] == ["01: fox", "02: cat", "03: fox"]
    for number, (_, image) in enumerate(shown):
        np.testing.assert_array_equal(image, np.full((4, 6, 3), 10 + number, dtype=np.uint8))
    for given, result in zip(batches, passed, strict=True):
        assert torch.equal(result.images, normalised(given).images)


def test_only_the_first_step_is_shown() -> None:
    shown: list[Captioned] = []
    to_device = SampleImages(normalised, DATA, CLASSES, 100, 2, shown.extend)
    for first in range(0, 10, 2):
        to_device(batch(first, torch.tensor([0, 1])))
    assert len(shown) == 4


def test_mixed_images_have_both_labels_and_a_class_without_a_name_its_number() -> None:
    shown: list[Captioned] = []
    SampleImages(normalised, DATA, (), 1, 1, shown.extend)(batch(0, torch.tensor([7])))
    mixed = torch.tensor([[0.25, 0.0, 0.75], [0.004, 0.996, 0.0]])
    SampleImages(normalised, DATA, CLASSES, 2, 1, shown.extend)(batch(0, mixed))
    assert [caption for caption, _ in shown] == ["01: 7", "01: 0.75 fox + 0.25 cat", "02: 1.00 dog"]
