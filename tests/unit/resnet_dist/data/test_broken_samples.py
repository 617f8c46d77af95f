"""Broken samples in the batches of the loader, under both values of `data.on_error`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from resnet_dist.data import Index, index_image_folder
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.index.table import Kind
from resnet_dist.data.loader import HostBatch, evaluation_batches, training_batches
from resnet_dist.data.order import Stream
from resnet_dist.data.sources.known_bad import with_known_bad
from resnet_dist.data.storage.files import files_of
from resnet_dist.errors import DataError
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import DataRecipe

FAIL = DataRecipe(root="none", resolution=16)
REPLACE = replace(FAIL, on_error="replace")
BROKEN, KNOWN = "train/ant/1.png", "train/ant/2.png"


@pytest.fixture
def index(tmp_path: Path, make_photo: Callable[[int, int, int], NDArray[np.uint8]]) -> Index:
    for split in ("train", "val"):
        (tmp_path / split / "ant").mkdir(parents=True)
        for number in range(4):
            Image.fromarray(make_photo(40, 50, number)).save(tmp_path / split / "ant" / f"{number}.png")
    index = index_image_folder(str(tmp_path), "train")
    [index] = with_known_bad([index], [KNOWN])
    (tmp_path / KNOWN).unlink()  # it is not read
    content = (tmp_path / BROKEN).read_bytes()
    start = content.index(b"IDAT") + 4
    times = (tmp_path / BROKEN).stat()
    (tmp_path / BROKEN).write_bytes(content[:start] + bytes(16) + content[start + 16 :])
    assert (tmp_path / BROKEN).stat().st_size == times.st_size
    return replace(index, times_ns=index.times_ns[:0])


def evaluated(index: Index, recipe: DataRecipe) -> list[HostBatch]:
    return list(evaluation_batches(index, files_of(index), 1, 0, 3, recipe, CpuDecoder(2, 1)))


def test_under_replace_a_batch_names_its_broken_samples_and_the_others_have_their_pixels(index: Index) -> None:
    first, second = evaluated(index, REPLACE)
    assert {number: image.name for number, image in first.broken.items()} == {1: BROKEN, 2: KNOWN}
    assert first.broken[1].problem.startswith("cannot be decoded")
    assert first.good().tolist() == [0]
    assert second.broken == {}
    assert first.images[1:].max() == 0
    whole = replace(index, kinds=np.full(4, Kind.ORDINARY))
    shutil.copy(Path(index.root) / "train/ant/0.png", Path(index.root) / BROKEN)
    shutil.copy(Path(index.root) / "train/ant/0.png", Path(index.root) / KNOWN)
    repaired = evaluated(replace(whole, tails=whole.tails[:0], num_bytes=whole.num_bytes[:0]), FAIL)
    assert torch.equal(repaired[0].images[0], first.images[0])
    assert torch.equal(repaired[1].images, second.images)


def test_under_fail_a_broken_image_ends_the_run_unless_it_is_known(index: Index) -> None:
    with pytest.raises(DataError, match=r"1\.png") as raised:
        evaluated(index, FAIL)
    assert raised.value.sample_id == 1
    [index] = with_known_bad([index], [BROKEN])
    assert set(evaluated(index, FAIL)[0].broken) == {1, 2}


def test_a_training_step_keeps_the_positions_of_its_broken_samples(index: Index) -> None:
    stream = Stream(4, 0)
    layout, decoder = BatchLayout(4), CpuDecoder(2, 1)
    [batch] = training_batches(index, files_of(index), stream, layout, 0, REPLACE, 0, decoder, [0])
    ids = stream.sample_ids(np.arange(4)).tolist()
    assert sorted(batch.broken) == sorted(ids.index(row) for row in (1, 2))
    assert batch.positions.tolist() == [0, 1, 2, 3]
