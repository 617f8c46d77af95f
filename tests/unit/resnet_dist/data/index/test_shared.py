"""Which index a run uses: a saved one, one of another run, or a new one."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starts import started, touch

from resnet_dist import rank_zero
from resnet_dist.data import Index, index_image_folder
from resnet_dist.data.headers.image import Header, header_of
from resnet_dist.data.index import build as build_index
from resnet_dist.data.index import made as made_index
from resnet_dist.data.index import progress as index_progress
from resnet_dist.data.index.made import shared_folder
from resnet_dist.data.index.shared import (
    SPLITS,
    index_file,
    saved_index,
    shared_indices,
)
from resnet_dist.data.index.turn import Turn
from resnet_dist.data.sources.image_folder import without_sub_folders
from resnet_dist.data.sources.listing import Split
from resnet_dist.data.storage import parallel
from resnet_dist.errors import DataError, RecipeError, StorageError
from resnet_dist.recipe.schema import DataRecipe


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
    assert any("index: reading the headers of train: 11 of 12 images, " in detail["text"] for detail in told)
    assert beats


def test_what_is_asked_before_anything_is_listed_is_said(
    folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    progress = index_progress.IndexProgress()
    monkeypatch.setattr(made_index, "_current", lambda *_: texts.append(progress.detail(0.0)["text"]))
    folders = made_index.Folders(saved, saved, saved)
    made_index.make_indices(DataRecipe(root=str(folder)), folders, progress, resumed=False)
    assert texts[0] == f"index: asking {folder} what train has now"
    assert f"index: asking {folder} what val has now" in texts


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
