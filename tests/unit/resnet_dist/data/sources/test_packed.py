"""The index of packed shards, and what a run sees of them."""

from __future__ import annotations

import itertools
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from launcher.prepare.packing import Options, pack
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.index.shared import check_same_data, facts_of_data
from resnet_dist.data.index.table import Index
from resnet_dist.data.loader import HostBatch, training_batches
from resnet_dist.data.order import order_of
from resnet_dist.data.sources.by_name import index_of
from resnet_dist.data.storage.files import files_of
from resnet_dist.errors import DataError
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import DataRecipe


@pytest.fixture
def packed(image_folder: Path, tmp_path: Path) -> Path:
    """The images of `image_folder`, in one shard for each split."""
    list(pack(DataRecipe(root=str(image_folder)), tmp_path / "packed", Options()))
    return tmp_path / "packed"


def recipe(root: Path, source: str, **keys: object) -> DataRecipe:
    return DataRecipe(root=str(root), source=source, **keys)  # type: ignore[arg-type]


def test_names_labels_sizes_and_bytes_are_those_of_the_source(packed: Path, image_folder: Path) -> None:
    for split in ("train", "val"):
        index, loose = (index_of(recipe(*of), split) for of in ((packed, "packed"), (image_folder, "imagefolder")))  # type: ignore[arg-type]
        assert index.fingerprint() == loose.fingerprint()
        assert index.contents() == loose.contents()
        assert index.kinds.tolist() == loose.kinds.tolist()
        assert (index.classes, index.source, index.root) == (loose.classes, "packed", str(packed))
        one, other = files_of(index), files_of(loose)
        assert all(one.read(row) == other.read(row) for row in range(len(loose)))


def first_steps(index: Index, data: DataRecipe) -> list[HostBatch]:
    """Six steps of 5 samples: three epochs of the 12 images, less than half."""
    batches = training_batches(
        index, files_of(index), order_of(index, data, 7), BatchLayout(5), 0, data, 7, CpuDecoder(1, 2), range(6)
    )
    with closing(batches):  # type: ignore[type-var]
        return list(itertools.islice(batches, 6))


def test_the_stream_is_the_same_from_loose_files_tar_shards_and_packed_shards(packed: Path, image_folder: Path) -> None:
    found = []
    for root, source in ((image_folder, "imagefolder"), (packed, "webdataset"), (packed, "packed")):
        data = recipe(root, source, resolution=16)
        found.append(first_steps(index_of(data, "train"), data))
    for batches in found[1:]:
        for one, other in zip(found[0], batches, strict=True):
            assert one.checksum == other.checksum
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


def test_a_packing_that_is_not_finished_is_refused(packed: Path) -> None:
    (packed / "card.json").unlink()
    with pytest.raises(DataError, match=r"card\.json: does not exist: .* the same `launcher prepare pack` command"):
        index_of(recipe(packed, "packed"), "train")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 2}', '{"format": 1, "splits": {"train": 3}}'])
def test_a_damaged_card_is_refused(packed: Path, text: str) -> None:
    (packed / "card.json").write_text(text)
    with pytest.raises(DataError, match=r"card\.json: (is damaged|has the format 2; this version reads 1)"):
        index_of(recipe(packed, "packed"), "train")


def test_missing_shards_and_shards_of_another_size_are_refused(packed: Path) -> None:
    shard = packed / "train-000000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    with pytest.raises(DataError, match=rf"train-000000\.tar: has {len(content) - 512:,} bytes, and card\.json says"):
        index_of(recipe(packed, "packed"), "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar: is missing; copy it again"):
        index_of(recipe(packed, "packed"), "train")


def test_an_image_that_is_overwritten_in_its_shard_is_named(packed: Path) -> None:
    index = index_of(recipe(packed, "packed"), "train")
    end = int(index.offsets[3] + index.num_bytes[3])
    with (packed / "train-000000.tar").open("r+b") as file:
        file.seek(end - 10)
        file.write(b"\1" * 10)
    with pytest.raises(DataError, match=rf"train-000000\.tar: {index.paths[3]} .*has changed since it was indexed"):
        files_of(index).read(3)


def test_packed_shards_are_memory_mapped_and_of_wherever_they_are(packed: Path, tmp_path: Path) -> None:
    moved = packed.rename(tmp_path / "moved")
    index = index_of(recipe(moved, "packed"), "train")
    assert isinstance(index.labels.base, np.ndarray)
    assert files_of(index).name(0) == f"{moved}/train-000000.tar: train/ant/0.jpg"


def test_a_shard_is_not_opened_for_each_image(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resnet_dist.data.storage import local as storage

    opened = []
    open_file = storage._open_file
    monkeypatch.setattr(storage, "_open_file", lambda path: opened.append(path) or open_file(path))  # type: ignore[func-returns-value]
    files = files_of(index_of(recipe(packed, "packed"), "train"))
    opened.clear()
    for row in [*range(12)] * 10:
        files.read(row)
    assert opened == [str(packed / "train-000000.tar")]


def test_the_card_names_shards_versions_and_source(packed: Path, image_folder: Path) -> None:
    card = json.loads((packed / "card.json").read_text())
    assert (card["format"], card["resized"], card["source"]["root"]) == (1, None, str(image_folder))
    assert [card["splits"][split]["images"] for split in ("train", "val")] == [12, 6]
    assert card["splits"]["train"]["shards"][0].keys() == {"name", "images", "bytes", "sha256"}


def test_a_run_may_go_on_with_packed_shards_unless_the_order_depends_on_them(packed: Path, image_folder: Path) -> None:
    loose, shards = (index_of(recipe(*of), "train") for of in ((image_folder, "imagefolder"), (packed, "packed")))
    check_same_data(facts_of_data(shards, shards), facts_of_data(loose, loose), 7, shards)
    with pytest.raises(DataError, match=r"shards \(data\.order: shards\) of train have changed since"):
        check_same_data(facts_of_data(shards, shards, "shards"), facts_of_data(loose, loose, "shards"), 7, shards)
