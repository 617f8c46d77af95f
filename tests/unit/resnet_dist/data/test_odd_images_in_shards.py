"""The collection of odd images in every source of shards: the same kinds, pixels and errors as in loose files."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import odd_images
from shard_files import write_parquet, write_tar

from launcher.prepare.packing import Options, pack
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.requests import BatchRequest
from resnet_dist.data.index.build import build_index
from resnet_dist.data.index.table import Index
from resnet_dist.data.sources.by_name import LISTINGS
from resnet_dist.data.sources.packed import packed_index
from resnet_dist.data.storage.files import files_of
from resnet_dist.recipe.schema import DataRecipe

IMAGES = odd_images()
WHOLE = [image for image in IMAGES if image.refused_by != "header"]


def recipe(root: Path, source: str) -> DataRecipe:
    return DataRecipe(root=str(root), source=source)


def index_of(data: DataRecipe) -> Index:
    """With broken images."""
    return build_index(LISTINGS[data.source](data, "train"), data.root, data.source, data=data)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The collection in each source, in one order; in packed shards those that the header does not refuse."""
    folder = tmp_path_factory.mktemp("odd")
    names = [f"{number:04d}{Path(image.name).suffix}" for number, image in enumerate(IMAGES)]
    for split in ("train", "val"):
        (folder / f"imagefolder/{split}/class").mkdir(parents=True)
        members: list[tuple[str, bytes]] = []
        for name, image in zip(names, IMAGES, strict=True):
            (folder / f"imagefolder/{split}/class/{name}").write_bytes(image.content)
            members += [(name, image.content), (f"{name[:4]}.cls", b"0")]
        write_tar(folder / f"webdataset/{split}-0.tar", members)
        contents = [image.content for image in IMAGES]
        write_parquet(folder / f"parquet/{split}-0.parquet", contents, [0] * len(IMAGES), rows=50)
    options = Options(skip_broken=True, threads=1)
    list(pack(recipe(folder / "imagefolder", "imagefolder"), folder / "packed", options))
    return {file.name: file for file in folder.iterdir()}


@pytest.fixture(scope="module")
def loose(roots: dict[str, Path]) -> Index:
    return index_of(recipe(roots["imagefolder"], "imagefolder"))


COLUMNS = ("heights", "widths", "kinds", "orientations", "num_bytes", "tails")


@pytest.mark.parametrize("source", ["webdataset", "parquet"])
def test_the_index_says_the_same_of_each_image(source: str, roots: dict[str, Path], loose: Index) -> None:
    index = index_of(recipe(roots[source], source))
    refused = {row for row, image in enumerate(IMAGES) if image.refused_by == "header"}
    assert set(index.problems) == refused
    assert dict(index.problems) == dict(loose.problems)
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(index, column), getattr(loose, column), err_msg=column)


def test_the_index_of_packed_shards_is_that_of_the_images_without_the_broken_ones(
    roots: dict[str, Path], loose: Index
) -> None:
    index = packed_index(recipe(roots["packed"], "packed"), "train")
    rows = np.array([row for row, image in enumerate(IMAGES) if image.refused_by != "header"])
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(index, column), getattr(loose, column)[rows], err_msg=column)
    assert list(index.paths) == [loose.paths[row] for row in rows]


def decoded(index: Index) -> tuple[torch.Tensor, dict[int, str]]:
    """The images that a header does not refuse, whole, at 24 pixels; and the problems of those that are broken."""
    index = index.with_exif("apply")
    rows = np.flatnonzero([row not in index.problems for row in range(len(index))])
    zero = np.zeros_like(index.heights[rows])
    windows = np.stack([zero, zero, index.heights[rows], index.widths[rows]], axis=1).astype(np.int32)
    request = BatchRequest.of(index, files_of(index), rows, rows, windows, np.zeros(len(rows), np.bool_), 24)
    with closing(CpuDecoder(1, 1).decode(iter([request]))) as batches:
        batch = next(batches)
    return batch.images, {number: error.problem for number, error in batch.errors.items()}


def test_pixels_and_errors_are_the_same_from_every_source(roots: dict[str, Path], loose: Index) -> None:
    images, errors = decoded(loose)
    assert sorted(errors) == [number for number, image in enumerate(WHOLE) if image.refused_by == "decoder"]
    others = [index_of(recipe(roots[source], source)) for source in ("webdataset", "parquet")]
    others.append(packed_index(recipe(roots["packed"], "packed"), "train"))
    for index in others:
        again, errors_again = decoded(index)
        assert torch.equal(again, images)
        assert errors_again == errors
