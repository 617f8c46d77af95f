"""`data.progressive` in the loader: the resolution of a step is the same on any workers, and after any restart."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import pytest
import torch

from resnet_dist.data import BatchRequest, Index
from resnet_dist.data.augmentation import augmentation_of
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.requests import Decoded
from resnet_dist.data.loader import training_batches
from resnet_dist.data.order import order_of
from resnet_dist.data.storage.files import files_of
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import AugmentationRecipe, DataRecipe

SEED = 3
RECIPE = DataRecipe(
    root="/unused",
    resolution=12,
    progressive={Duration.parse("1 epoch"): 24, Duration.parse("3 steps"): 16, Duration.parse("40 samples"): 20},
)
EXPECTED = [12, 12, 24, 16, 16, 20, 20]  # of steps of 8 samples; an epoch of 12 ends in step 1


@dataclass
class Recorder:
    """A decoder that decodes nothing and keeps the requests."""

    requests: list[BatchRequest] = field(default_factory=list)

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        for request in requests:
            self.requests.append(request)
            size = request.resolution
            yield Decoded(request, torch.zeros(len(request), 3, size, size, dtype=torch.uint8))


def asked(index: Index, layout: BatchLayout, steps: range) -> dict[int, tuple[int, ...]]:
    """(resolution, sample, window, flip) of all workers by position."""
    found: dict[int, tuple[int, ...]] = {}
    for rank in range(layout.world_size):
        recorder, order = Recorder(), order_of(index, RECIPE, SEED)
        batches = training_batches(index, files_of(index), order, layout, rank, RECIPE, SEED, recorder, steps)
        assert [batch.images.shape[-1] for batch in batches] == [one.resolution for one in recorder.requests]
        for request in recorder.requests:
            columns = (request.positions, request.sample_ids, *request.windows.T, request.flips)
            for position, *rest in zip(*(column.tolist() for column in columns), strict=True):
                assert position not in found
                found[position] = (request.resolution, *rest)
    return found


def test_a_step_has_the_resolution_of_its_time(train_index: Index) -> None:
    found = asked(train_index, BatchLayout(size=8), range(7))
    assert [found[8 * step][0] for step in range(7)] == EXPECTED


@pytest.mark.parametrize("num_micro_batches", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_workers_micro_batches_and_restarts_change_nothing(
    train_index: Index, world_size: int, num_micro_batches: int
) -> None:
    expected = asked(train_index, BatchLayout(size=8), range(7))
    layout = BatchLayout(size=8, num_micro_batches=num_micro_batches, world_size=world_size)
    before, after = asked(train_index, layout, range(4)), asked(train_index, layout, range(4, 7))
    assert before | after == expected
    assert not before.keys() & after.keys()


def test_decoded_images_and_their_augmentation_have_that_resolution(train_index: Index) -> None:
    recipe = DataRecipe(
        root="/unused",
        resolution=12,
        progressive={Duration.parse("1 step"): 20},
        augmentation=AugmentationRecipe(name="randaugment"),
    )
    augmentation = augmentation_of(recipe, seed=SEED, device=torch.device("cpu"), num_threads=1)
    layout, order, decoder = BatchLayout(size=6), order_of(train_index, recipe, SEED), CpuDecoder(1, prefetch=2)
    files = files_of(train_index)
    batches = training_batches(train_index, files, order, layout, 0, recipe, SEED, decoder, range(2), augmentation)
    assert [tuple(batch.images.shape) for batch in batches] == [(6, 3, 12, 12), (6, 3, 20, 20)]
