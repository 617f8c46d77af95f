"""Batches on the device: normalised, and in training erased and mixed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from resnet_dist.data.erasing import RandomErasing
from resnet_dist.data.loader import BadImage, HostBatch, normalise
from resnet_dist.data.mixing import PairMixing
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import (
    BatchRecipe,
    DataRecipe,
    ModelRecipe,
    Recipe,
    RegularizationRecipe,
    ScheduleRecipe,
)
from resnet_dist.training.device import ToDevice

CPU = torch.device("cpu")
SIZE, NUM, NUM_CLASSES = 16, 6, 4
PLAIN = Recipe(
    data=DataRecipe(root="none", resolution=SIZE),
    batch=BatchRecipe(size=NUM),
    duration=Duration.parse("1 step"),
    schedule=ScheduleRecipe(peak_lr=0.1),
    model=ModelRecipe(num_classes=NUM_CLASSES),
    seed=3,
)
ALL = replace(PLAIN, regularization=RegularizationRecipe(mixup=0.5, cutmix=1.0, random_erasing=0.5))


def batch(first: int = 40, num: int = NUM) -> HostBatch:
    generator = torch.Generator().manual_seed(first)
    images = torch.randint(256, (num, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    labels = torch.randint(NUM_CLASSES, (num,), generator=generator)
    return HostBatch(images, labels, torch.arange(first, first + num), checksum=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_without_regularizers_images_are_only_normalised(training: bool, precision: str) -> None:
    recipe = replace(PLAIN, precision=precision)  # type: ignore[arg-type]
    own = ToDevice(recipe, CPU, training=training)(batch())
    dtype = getattr(torch, precision)
    assert torch.equal(own.images, normalise(batch().images, PLAIN.data.mean, PLAIN.data.std, dtype))
    assert torch.equal(own.labels, batch().labels)
    assert own.labels.dtype == torch.int64


@pytest.mark.parametrize("broken", [[2], [3], [2, 3], [0, 5]])
def test_broken_samples_are_removed_and_their_partners_are_not_mixed(broken: list[int]) -> None:
    host, to_device = batch(), ToDevice(ALL, CPU, training=True)
    whole = to_device(host)
    own = to_device(replace(host, broken={number: BadImage(f"{number}.jpg", "") for number in broken}))
    erased = ToDevice(replace(ALL, regularization=RegularizationRecipe(random_erasing=0.5)), CPU, training=True)(host)
    partners = [number ^ 1 for number in broken]
    kept = [number for number in range(NUM) if number not in broken]
    assert (len(own.images), len(own.labels), own.num_broken) == (NUM - len(broken), NUM - len(broken), len(broken))
    assert own.images.is_contiguous(memory_format=torch.channels_last)
    for number, image, label in zip(kept, own.images, own.labels, strict=True):
        if number in partners:
            assert torch.equal(image, erased.images[number])
            assert torch.equal(label, torch.eye(NUM_CLASSES)[host.labels[number]])
        else:
            assert torch.equal(image, whole.images[number])
            assert torch.equal(label, whole.labels[number])


def test_evaluation_neither_erases_nor_mixes() -> None:
    own, plain = ToDevice(ALL, CPU)(batch(first=41, num=5)), ToDevice(PLAIN, CPU)(batch(first=41, num=5))
    assert torch.equal(own.images, plain.images)
    assert torch.equal(own.labels, plain.labels)


def test_training_erases_first_and_then_mixes() -> None:
    own, plain = ToDevice(ALL, CPU, training=True)(batch()), ToDevice(PLAIN, CPU)(batch())
    images, labels, positions = plain.images, plain.labels, batch().positions.numpy()
    for change in (RandomErasing(0.5, seed=3), PairMixing(0.5, 1.0, NUM_CLASSES, seed=3)):
        drawn = torch.from_numpy(change.draw(positions, SIZE, SIZE))
        images, labels = change.apply(images, labels, drawn)
    assert torch.equal(own.images, images)
    assert torch.equal(own.labels, labels)
    assert own.labels.shape == (NUM, NUM_CLASSES)
    assert not torch.equal(own.images, ToDevice(PLAIN, CPU)(batch()).images)


def test_how_a_batch_is_split_changes_no_bit() -> None:
    to_device, host = ToDevice(ALL, CPU, training=True), batch()
    whole = to_device(batch())
    for part in (slice(0, 2), slice(2, 6)):
        own = to_device(HostBatch(host.images[part], host.labels[part], host.positions[part], checksum=0))
        assert torch.equal(own.images, whole.images[part])
        assert torch.equal(own.labels, whole.labels[part])


def test_the_decoded_images_stay_as_they_are() -> None:
    host = batch()
    ToDevice(ALL, CPU, training=True)(host)
    assert torch.equal(host.images, batch().images)
    assert torch.equal(host.labels, batch().labels)
