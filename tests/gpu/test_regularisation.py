"""Random changes of images on a GPU: the pixels of the CPU, and the host does not wait for the training step."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_requests import Contents

from resnet_dist.data.augmentation import augmentation_of
from resnet_dist.data.decoding.requests import BatchRequest, Decoded
from resnet_dist.data.loader import HostBatch
from resnet_dist.models.loss import loss_of
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    AugmentationRecipe,
    BatchRecipe,
    DataRecipe,
    LossRecipe,
    ModelRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
)
from resnet_dist.training.device import ToDevice

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZE, NUM, NUM_CLASSES = 64, 8, 5
RECIPE = Recipe(
    data=DataRecipe(root="none", resolution=SIZE),
    batch=BatchRecipe(size=NUM),
    duration=Duration.parse("1 step"),
    schedule=ScheduleRecipe(peak_lr=0.1),
    model=ModelRecipe(num_classes=NUM_CLASSES),
    regularization=RegularizationRecipe(label_smoothing=0.1, mixup=0.5, cutmix=1.0, random_erasing=0.5),
    loss=LossRecipe(name="bce", target_threshold=0.2, class_weights="balanced"),
)


def pixels(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (NUM, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)


def test_erasing_mixing_and_losses_are_those_of_the_cpu_and_wait_for_nothing() -> None:
    batch = HostBatch(pixels(), torch.arange(NUM) % NUM_CLASSES, torch.arange(NUM), checksum=0)
    logits = torch.randn(NUM, NUM_CLASSES)
    labels = np.arange(20) % NUM_CLASSES
    expected = ToDevice(RECIPE, CPU, training=True)(batch)
    expected_loss = loss_of(RECIPE, labels, CPU)(logits, expected.labels)
    to_device, loss_sum, on_gpu = ToDevice(RECIPE, GPU, training=True), loss_of(RECIPE, labels, GPU), logits.to(GPU)
    to_device(batch)  # the channels' mean and deviation are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = to_device(batch)
        loss = loss_sum(on_gpu, found.labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.images.cpu(), expected.images)
    torch.testing.assert_close(found.labels.cpu(), expected.labels)
    torch.testing.assert_close(loss.cpu(), expected_loss)


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_augmented_pixels_are_those_of_the_cpu(name: str) -> None:
    recipe = replace(RECIPE.data, color_jitter=0.4, augmentation=AugmentationRecipe(name=name))

    def augmented(device: torch.device) -> torch.Tensor:
        def decoded() -> Generator[Decoded, None, None]:
            kinds, orientations = np.zeros(NUM, np.uint8), np.ones(NUM, np.uint8)
            windows, flips = np.zeros((NUM, 4), dtype=np.int32), np.zeros(NUM, dtype=np.bool_)
            for number in range(4):
                positions = np.arange(number * NUM, (number + 1) * NUM)
                request = BatchRequest(positions, positions, windows, flips, kinds, orientations, SIZE, Contents([]))
                yield Decoded(request, pixels(number).to(device))

        augmentation = augmentation_of(recipe, seed=1, device=device, num_threads=2)
        assert augmentation is not None
        return torch.cat([changed.images.cpu() for changed in augmentation(decoded())])

    difference = (augmented(GPU).int() - augmented(CPU).int()).abs()
    # Rounding may move a pixel to its neighbour in rotations, and a value by 1 elsewhere.
    assert (difference > 2).float().mean() < 0.01
