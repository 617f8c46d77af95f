from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_dist.data import Index
from resnet_dist.data.index.shared import shared_indices
from resnet_dist.data.loader import HostBatch, decoder_for, evaluation_batches, training_batches
from resnet_dist.data.order import Stream
from resnet_dist.data.storage.files import files_of
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import DataRecipe

RECIPE = DataRecipe(source="synthetic", num_samples=100, resolution=8)
SEED = 3


def indices(recipe: DataRecipe = RECIPE, num_classes: int = 7) -> tuple[Index, Index]:
    return shared_indices(recipe, num_classes, 0, 1, Path("/nowhere"))


def batches(world_size: int, rank: int, num_micro_batches: int = 1) -> list[HostBatch]:
    train, _ = indices()
    layout = BatchLayout(20, num_micro_batches, world_size)
    decoder = decoder_for(RECIPE, device=torch.device("cpu"), num_threads=1, max_batch_size=20)
    order = Stream(len(train), SEED)
    return list(training_batches(train, files_of(train), order, layout, rank, RECIPE, SEED, decoder, steps=range(3)))


def samples(found: list[HostBatch]) -> dict[int, tuple[int, bytes]]:
    """Position -> label and pixels."""
    return {
        position: (label, image.numpy().tobytes())
        for batch in found
        for position, label, image in zip(batch.positions.tolist(), batch.labels.tolist(), batch.images, strict=True)
    }


def test_splits_have_the_samples_and_classes_of_the_recipe_and_no_files() -> None:
    train, val = indices()
    assert (len(train), len(val)) == (100, 4)
    assert train.classes == val.classes == tuple(f"class {label}" for label in range(7))
    assert set(train.labels.tolist()) == set(range(7))
    assert len(set(train.paths)) == 100
    assert len(train.take(np.array([3, 99])).paths) == 2
    assert train.fingerprint() == indices()[0].fingerprint() != indices(num_classes=6)[0].fingerprint()


def test_labels_are_about_equally_frequent() -> None:
    train, _ = indices(DataRecipe(source="synthetic", num_samples=70_000))
    assert np.abs(np.bincount(train.labels) - 10_000).max() < 400  # 4 standard deviations


def test_images_are_random_uint8_in_channels_last_memory() -> None:
    [batch, *_] = batches(1, 0)
    assert (batch.images.shape, batch.images.dtype) == ((20, 3, 8, 8), torch.uint8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert abs(batch.images.float().mean() - 127.5) < 4 * 74 / batch.images.numel() ** 0.5
    assert len({image for _, image in samples([batch]).values()}) > 10


@pytest.mark.parametrize(("world_size", "num_micro_batches"), [(2, 1), (3, 2)])
def test_workers_and_micro_batches_change_no_sample(world_size: int, num_micro_batches: int) -> None:
    found: dict[int, tuple[int, bytes]] = {}
    for rank in range(world_size):
        found |= samples(batches(world_size, rank, num_micro_batches))
    assert found == samples(batches(1, 0))


def test_evaluation_has_images_of_its_resolution() -> None:
    _, val = indices()
    decoder = decoder_for(RECIPE, device=torch.device("cpu"), num_threads=1, max_batch_size=3)
    found = [
        batch.images.shape[2:]
        for resolution in (8, 16)
        for batch in islice(
            evaluation_batches(val, files_of(val), 1, 0, 3, DataRecipe(resolution=resolution), decoder), 2
        )
    ]
    assert found == [(8, 8), (8, 8), (16, 16), (16, 16)]
