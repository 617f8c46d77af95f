"""Which index a run uses: a saved one, or a new one; and what it says about data that have changed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_dist import rank_zero
from resnet_dist.data import Index, index_image_folder
from resnet_dist.data.headers.image import Header, header_of
from resnet_dist.data.index import build as build_index
from resnet_dist.data.index import made as made_index
from resnet_dist.data.index import progress as index_progress
from resnet_dist.data.index.made import shared_folder
from resnet_dist.data.index.shared import (
    SPLITS,
    check_same_data,
    facts_of_data,
    index_file,
    saved_index,
    shared_indices,
)
from resnet_dist.data.index.table import Kind
from resnet_dist.data.index.turn import Turn
from resnet_dist.data.sources.image_folder import without_sub_folders
from resnet_dist.data.sources.listing import Split
from resnet_dist.data.storage import parallel
from resnet_dist.errors import DataError, RecipeError, StorageError
from resnet_dist.recipe.schema import DataRecipe

BROKEN = b"no image any more"


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The run's folder of indices."""
    return tmp_path / "index"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The folder that the runs of a storage share."""
    return tmp_path / "storage" / ".indices"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers have been read."""
    names: list[str] = []

    def counted(name: str, num_bytes: int, read: Callable[[int, int], bytes]) -> Header:
        names.append(os.path.basename(os.path.dirname(name)) + "/" + os.path.basename(name))  # noqa: PTH119, PTH120
        return header_of(name, num_bytes, read)

    monkeypatch.setattr(build_index, "header_of", counted)
    return names


def started(
    folder: Path, saved: Path, shared: Path | None = None, *, num_classes: int = 3, resumed: bool = False, **keys: str
) -> tuple[Index, Index]:
    data = DataRecipe(root=str(folder), **keys)  # type: ignore[arg-type]
    return shared_indices(data, num_classes, 0, 1, saved, shared, resumed=resumed)


def save_as_version_0_1(index: Index, folder: Path, split: str) -> None:
    """Save `index` as version 0.1 did."""
    folder.mkdir(exist_ok=True)
    texts = {"root": [index.root], "classes": index.classes, "paths": index.paths, "folders": [*index.folder_times_ns]}
    columns = {
        name: np.frombuffer("\0".join(lines).encode("utf-8", "surrogateescape"), np.uint8)
        for name, lines in texts.items()
    }
    numbers = {"labels": index.labels, "heights": index.heights, "widths": index.widths}
    times_ns = np.array([*index.folder_times_ns.values()])
    np.savez(folder / f"{split}.npz", format=np.array(1), times_ns=times_ns, **columns, **numbers)  # type: ignore[arg-type]


def touch(folder: Path) -> None:
    """Another modification time: file systems may be too coarse for two changes in a row."""
    os.utime(folder, ns=(0, folder.stat().st_mtime_ns + 1))


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_a_second_start_reads_no_header_again(folder: Path, saved: Path, read: list[str]) -> None:
    first = started(folder, saved)
    assert len(read) == 18
    second = started(folder, saved)
    assert len(read) == 18
    assert [index.fingerprint() for index in first] == [index.fingerprint() for index in second]
    assert [index.contents() for index in first] == [index.contents() for index in second]


def test_a_person_and_a_watchdog_see_how_far_the_index_is(
    folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero, "TICK_S", 0.01)
    monkeypatch.setattr(index_progress, "EVERY_S", 0.0)
    monkeypatch.setattr(parallel, "CHUNK", 1)
    told: list[Mapping[str, Any]] = []
    beats: list[None] = []

    def slow(name: str, num_bytes: int, read: Callable[[int, int], bytes]) -> Header:
        if name.endswith("cat/3.jpg"):
            enough.wait(10)
        return header_of(name, num_bytes, read)

    def tell(detail: Mapping[str, Any]) -> None:
        told.append(detail)
        if "left" in detail["text"] and detail["done"] == 11:
            enough.set()

    enough = threading.Event()
    monkeypatch.setattr(build_index, "header_of", slow)
    data = DataRecipe(root=str(folder))
    shared_indices(data, 3, 0, 1, saved, beat=lambda: beats.append(None), tell=tell)
    assert any("index: reading the headers of train: 11 of 12, " in detail["text"] for detail in told)
    assert beats


def test_runs_of_a_storage_read_the_headers_once(folder: Path, tmp_path: Path, shared: Path, read: list[str]) -> None:
    runs = [tmp_path / name / "index" for name in ("a", "b", "c")]
    found = {tuple(index.fingerprint() for index in started(folder, run, shared)) for run in runs}
    assert (len(found), len(read)) == (1, 18)
    assert len({(run / "train.safetensors").stat().st_ino for run in runs}) == 1  # links take no space
    shutil.rmtree(shared)
    started(folder, runs[0], shared)  # from the run's own
    started(folder, tmp_path / "d" / "index", shared)
    assert len(read) == 18


def test_data_with_other_names_for_their_parts_are_other_data(shared: Path) -> None:
    one = DataRecipe(root="/data", source="parquet")
    others = [dataclasses.replace(one, root="/other"), dataclasses.replace(one, label_key="fine_label")]
    assert len({shared_folder(data, shared) for data in (one, *others)}) == 3
    assert shared_folder(dataclasses.replace(one, subset=10), shared) == shared_folder(one, shared)


def test_an_index_is_used_only_for_its_own_root_source_and_content(folder: Path, saved: Path, tmp_path: Path) -> None:
    started(folder, saved)
    data = DataRecipe(root=str(folder))
    for split in SPLITS:
        assert saved_index(data, split, saved) is not None
        assert saved_index(dataclasses.replace(data, root=str(tmp_path / "other")), split, saved) is None
        assert saved_index(dataclasses.replace(data, source="my_data:source"), split, saved) is None
        assert saved_index(data, split, tmp_path / "nothing here") is None
    touch(folder / "val" / "cat")
    assert [saved_index(data, split, saved) is None for split in SPLITS] == [False, True]
    touch(folder / "train")
    assert [saved_index(data, split, saved) is None for split in SPLITS] == [True, True]


def test_a_damaged_index_is_created_again(folder: Path, saved: Path, shared: Path, read: list[str]) -> None:
    started(folder, saved, shared)
    data = DataRecipe(root=str(folder))
    for file in (index_file(saved, "train"), index_file(shared_folder(data, shared), "train")):
        file.unlink()
        file.write_bytes(b"torn")
    assert saved_index(data, "train", saved, shared) is None
    assert len(started(folder, saved, shared)[0]) == 12
    assert len(read) == 18 + 12


def test_what_is_left_out_is_logged_at_every_start(folder: Path, saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "val" / "ant" / "notes.txt").touch()
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            started(folder, saved, num_classes=5)
        left_out, fewer = caplog.messages
        assert left_out == f"{folder}/val: left out files without the suffix of an image: 1, for example ant/notes.txt"
        assert fewer.startswith(f"{folder}: has 3 classes and the model predicts 5")


def test_labels_outside_of_the_model_are_refused(folder: Path, saved: Path) -> None:
    with pytest.raises(DataError, match=r"4 of 12 images have labels of 2 or more, for example train/cat/0\.jpg"):
        started(folder, saved, num_classes=2)


def test_the_number_of_training_samples_is_verified_also_of_a_saved_index(folder: Path, saved: Path) -> None:
    data = DataRecipe(root=str(folder), num_samples=12)
    assert len(shared_indices(data, 3, 0, 1, saved)[0]) == 12
    with pytest.raises(RecipeError, match=r"data\.num_samples: is 13, but .* has 12 images"):
        shared_indices(dataclasses.replace(data, num_samples=13), 3, 0, 1, saved)


def test_broken_images_are_named_and_read_again_until_they_are_repaired(
    folder: Path, saved: Path, shared: Path, read: list[str]
) -> None:
    file = folder / "train" / "ant" / "1.jpg"
    whole = file.read_bytes()
    file.write_bytes(BROKEN)
    (folder / "train" / "bee" / "2.jpg").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"ant/1\.jpg: is not an image.* The first of 2 broken files; .*bee/2\.jpg: is em"
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
    assert "images: train has changed since its last index: 1 image is of other content: train/ant/0.jpg" in caplog.text


@pytest.mark.parametrize("split", SPLITS)
def test_a_resumed_run_is_refused_with_the_names_of_what_has_changed(folder: Path, saved: Path, split: str) -> None:
    started(folder, saved)
    shutil.copy(folder / split / "ant" / "0.jpg", folder / split / "ant" / "new.jpg")
    (folder / split / "bee" / "1.jpg").unlink()
    swap(folder / split / "cat" / "0.jpg", folder / split / "cat" / "1.jpg")
    changes = (
        rf"images: {split} has changed since the run began: 1 image is new: {split}/ant/new\.jpg; 1 image is missing: "
        rf"{split}/bee/1\.jpg; 2 images are of other content: {split}/cat/0\.jpg, {split}/cat/1\.jpg\. Restore them"
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
    with pytest.raises(DataError, match="2 images are of other content"):
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


def test_two_runs_that_start_at_once_read_the_headers_once(
    folder: Path, tmp_path: Path, shared: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_index, "_POLL_S", 0.01)
    found: list[str] = []
    runs = [
        threading.Thread(target=lambda run: found.append(started(folder, run, shared)[0].fingerprint()), args=(run,))
        for run in (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert (len(found), len(set(found)), len(read)) == (3, 1, 18)
    assert {file.name for file in shared_folder(DataRecipe(root=str(folder)), shared).iterdir()} == {
        "train.safetensors",
        "val.safetensors",
    }


def test_an_index_that_was_made_just_before_our_turn_is_used(
    folder: Path, saved: Path, tmp_path: Path, shared: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Turn):
        def taken(self) -> contextlib.AbstractContextManager[bool]:
            monkeypatch.setattr(made_index, "Turn", Turn)
            started(folder, tmp_path / "other", shared)
            return super().taken()

    monkeypatch.setattr(made_index, "Turn", Late)
    started(folder, saved, shared)
    assert len(read) == 18


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
    with pytest.raises(DataError, match="val has changed since the run began: 4 images are of other content: val-0-0"):
        started(shards, saved, shared, source="webdataset", resumed=True)


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """A file in its place: root may write to folders without permission."""
    folder.parent.mkdir(parents=True)
    folder.touch()
    yield
    folder.unlink()


def test_a_shared_folder_that_cannot_be_written_is_a_warning(
    folder: Path, saved: Path, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with unwritable(shared):
        assert [len(index) for index in started(folder, saved, shared)] == [12, 6]
    (warning,) = caplog.messages
    assert "other runs do not share the index" in warning


def test_a_run_directory_that_cannot_be_written_is_an_error(folder: Path, tmp_path: Path) -> None:
    with unwritable(tmp_path / "run" / "index"), pytest.raises(StorageError, match=r"run/index/train\.safetensors"):
        started(folder, tmp_path / "run" / "index", tmp_path / "shared")


@pytest.mark.parametrize("split", SPLITS)
def test_a_run_of_version_0_1_that_left_out_images_in_sub_folders_is_refused(
    folder: Path, saved: Path, split: str
) -> None:
    sub_folder = folder / split / "bee" / "more"
    sub_folder.mkdir()
    shutil.copy(folder / split / "bee" / "0.jpg", sub_folder / "0.jpg")
    for name in SPLITS:
        index = index_image_folder(str(folder), name)
        save_as_version_0_1(without_sub_folders(index) or index, saved, name)
    found = rf"images in sub-folders of class folders: 1, for example {split}/bee/more/0\.jpg\. The run began without"
    for _ in range(2):  # the refusal does not change what the next start finds
        with pytest.raises(DataError, match=found):
            started(folder, saved, resumed=True)
    shutil.rmtree(sub_folder)
    assert [len(index) for index in started(folder, saved, resumed=True)] == [12, 6]


def test_a_run_of_version_0_1_without_sub_folders_continues(folder: Path, saved: Path) -> None:
    before: dict[Split, Index] = {split: index_image_folder(str(folder), split) for split in SPLITS}
    for split in SPLITS:
        save_as_version_0_1(before[split], saved, split)
    after = started(folder, saved, resumed=True)
    assert [index.fingerprint() for index in after] == [before[split].fingerprint() for split in SPLITS]
