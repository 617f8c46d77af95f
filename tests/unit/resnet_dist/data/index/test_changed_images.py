"""What a start says and does about images that are broken, or have changed since the index was made."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from starts import started, swap, touch

from resnet_dist.data import index_image_folder
from resnet_dist.data.headers.image import Header, header_of
from resnet_dist.data.index import build as build_index
from resnet_dist.data.index.shared import (
    SPLITS,
    check_same_data,
    facts_of_data,
)
from resnet_dist.data.index.table import Kind
from resnet_dist.errors import DataError

BROKEN = b"no image any more"


def test_broken_images_are_named_and_read_again_until_they_are_repaired(
    folder: Path, saved: Path, shared: Path, read: list[str]
) -> None:
    file = folder / "train" / "ant" / "1.jpg"
    whole = file.read_bytes()
    file.write_bytes(BROKEN)
    (folder / "train" / "bee" / "2.jpg").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"ant/1\.jpg: is not an image.* The first of 2 broken files; .*\n .*bee/2\.jpg: is em"
        ):
            started(folder, saved, shared)
    assert len(read) == 18 + 2  # then only the broken ones
    replacing = started(folder, saved, shared, on_error="replace")[0]
    assert np.flatnonzero(replacing.kinds == Kind.BROKEN).tolist() == [1, 6]
    assert sorted(replacing.problems) == [1, 6]
    listed = folder.parent / "bad.txt"
    listed.write_text("train/bee/2.jpg\n")
    file.write_bytes(whole)
    read.clear()
    assert sorted(started(folder, saved, shared, known_bad=str(listed))[0].problems) == [6]
    assert read == ["ant/1.jpg", "bee/2.jpg"]


def test_a_file_that_was_written_again_is_read_again(
    folder: Path, saved: Path, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    started(folder, saved)
    read.clear()
    file = folder / "train" / "ant" / "0.jpg"
    file.write_bytes((folder / "train" / "ant" / "1.jpg").read_bytes())  # does not change the folder's time
    os.utime(file, ns=(0, 0))  # nor do dates tell
    train, _ = started(folder, saved)
    assert read == ["ant/0.jpg"]
    assert train.fingerprint() == index_image_folder(str(folder), "train").fingerprint()
    assert train.heights[0] == train.heights[1]
    assert "images: train has changed since its last index: 1 image has changed: train/ant/0.jpg" in caplog.text


@pytest.mark.parametrize("split", SPLITS)
def test_a_resumed_run_is_refused_with_the_names_of_what_has_changed(folder: Path, saved: Path, split: str) -> None:
    started(folder, saved)
    shutil.copy(folder / split / "ant" / "0.jpg", folder / split / "ant" / "new.jpg")
    (folder / split / "bee" / "1.jpg").unlink()
    swap(folder / split / "cat" / "0.jpg", folder / split / "cat" / "1.jpg")
    changes = (
        rf"images: {split} has changed since the run began: 1 image is new: {split}/ant/new\.jpg; 1 image is missing: "
        rf"{split}/bee/1\.jpg; 2 images have changed: {split}/cat/0\.jpg, {split}/cat/1\.jpg\. Restore them"
    )
    for _ in range(2):  # the refusal does not change what the next start finds
        with pytest.raises(DataError, match=changes):
            started(folder, saved, resumed=True)


def test_pictures_of_one_size_that_change_places_are_noticed(folder: Path, saved: Path, tmp_path: Path) -> None:
    image = folder / "train" / "ant"
    altered = bytearray((image / "0.jpg").read_bytes())
    altered[-20] ^= 1
    (image / "1.jpg").write_bytes(altered)  # of the same size in pixels and in bytes
    before = facts_of_data(*started(folder, saved))
    swap(image / "0.jpg", image / "1.jpg")
    with pytest.raises(DataError, match="2 images have changed"):
        started(folder, saved, resumed=True)
    train, val = started(folder, tmp_path / "lost")
    assert train.fingerprint() == before["data"]
    with pytest.raises(DataError, match="bytes of train have changed since the checkpoint of step 7"):
        check_same_data(facts_of_data(train, val), before, 7, train)
    check_same_data(facts_of_data(train, val), {"data": before["data"]}, 7, train)  # of version 0.1


def test_the_val_split_is_compared_with_the_checkpoint_too(folder: Path, saved: Path) -> None:
    train, val = started(folder, saved)
    now = facts_of_data(train, val)
    check_same_data(now, now, 7, train)
    with pytest.raises(DataError, match="files, labels or sizes of val have changed since the checkpoint of step 7"):
        check_same_data(now, {**now, "val_data": "another"}, 7, train)


def test_a_resumed_run_leaves_out_the_images_that_it_began_without(folder: Path, saved: Path, tmp_path: Path) -> None:
    file, other = folder / "train" / "ant" / "1.jpg", folder / "train" / "bee" / "2.jpg"
    whole = file.read_bytes()
    file.write_bytes(BROKEN)
    began = started(folder, saved, on_error="replace")[0]
    file.write_bytes(whole)
    other.write_bytes(BROKEN)
    resumed = started(folder, saved, on_error="replace", resumed=True)[0]
    assert resumed.fingerprint() == began.fingerprint()
    assert (resumed.kinds.tolist(), dict(resumed.problems)) == (began.kinds.tolist(), dict(began.problems))
    with pytest.raises(DataError, match=r"bee/2\.jpg: is not an image"):
        started(folder, saved, resumed=True)


def test_images_that_arrive_while_the_index_is_made_are_in_it(
    folder: Path, saved: Path, read: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = vars(build_index)["header_of"]

    def copies_meanwhile(name: str, num_bytes: int, read: Callable[[int, int], bytes]) -> Header:
        if name.endswith("bee/0.jpg") and not (folder / "train" / "ant" / "new.jpg").exists():
            (folder / "train" / "cat" / "3.jpg").unlink()
            shutil.copy(folder / "train" / "ant" / "0.jpg", folder / "train" / "ant" / "new.jpg")
            touch(folder / "train" / "ant")
        found: Header = counted(name, num_bytes, read)
        return found

    monkeypatch.setattr(build_index, "header_of", copies_meanwhile)
    train, _ = started(folder, saved)
    assert train.fingerprint() == index_image_folder(str(folder), "train").fingerprint()
    assert "changed while its index was made: 1 image is new: train/ant/new.jpg; 1 image is missing" in caplog.text
    assert read.count("ant/0.jpg") == 2 + 1  # of train once, of val once, and just now


def test_images_that_never_stop_to_arrive_are_an_error(
    folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(100))

    def arriving(name: str, num_bytes: int, read: Callable[[int, int], bytes]) -> Header:
        shutil.copy(folder / "val" / "ant" / "0.jpg", folder / "train" / "ant" / f"new-{next(numbers)}.jpg")
        touch(folder / "train" / "ant")
        return header_of(name, num_bytes, read)

    monkeypatch.setattr(build_index, "header_of", arriving)
    with pytest.raises(DataError, match=r"images of train come and go while .* is made: \d+ images are new: .*Wait"):
        started(folder, saved)


def write_shard(file: Path, images: list[Path]) -> None:
    """A tar with these images; the class of each is its number modulo 2."""
    with tarfile.open(file, "w") as tar:
        for number, image in enumerate(images):
            for suffix, content in (("jpg", image.read_bytes()), ("cls", b"%d" % (number % 2))):
                member = tarfile.TarInfo(f"{file.stem}-{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_the_index_of_shards_is_used_until_a_shard_comes_or_changes(
    folder: Path, tmp_path: Path, saved: Path, shared: Path, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    images, shards = sorted((folder / "train" / "ant").iterdir()), tmp_path / "shards"
    shards.mkdir()
    for name in ("train-0", "train-1", "val-0"):
        write_shard(shards / f"{name}.tar", images)
    for _ in range(2):
        assert [len(index) for index in started(shards, saved, shared, source="webdataset")] == [8, 4]
        assert len(read) == 12
    write_shard(shards / "train-2.tar", images[:2])
    assert [len(index) for index in started(shards, saved, shared, source="webdataset")] == [10, 4]
    assert "train has changed since its last index: 2 images are new: train-2-0.jpg, train-2-1.jpg" in caplog.text
    assert len(read) == 12 + 10
    write_shard(shards / "val-0.tar", images[::-1])
    touch(shards / "val-0.tar")
    with pytest.raises(DataError, match="val has changed since the run began: 4 images have changed: val-0-0"):
        started(shards, saved, shared, source="webdataset", resumed=True)
