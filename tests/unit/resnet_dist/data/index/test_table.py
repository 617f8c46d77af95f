from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from resnet_dist.data.index.changes import is_current
from resnet_dist.data.index.table import Index, check_labels, check_same_classes, compare_classes
from resnet_dist.data.sources.by_name import index_image_folder
from resnet_dist.errors import DataError


def test_index_survives_saving_and_loading(train_index: Index, tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "train.safetensors"
    whole = dataclasses.replace(train_index, notes=("left out x", "left out y"), source="imagefolder")
    whole.save(file)
    loaded = Index.load(file)
    assert loaded.fingerprint() == train_index.fingerprint()
    assert (loaded.notes, loaded.source) == (whole.notes, whole.source)
    assert (loaded.root, loaded.classes, tuple(loaded.paths)) == (
        train_index.root,
        train_index.classes,
        tuple(train_index.paths),
    )
    assert loaded.folder_times_ns == train_index.folder_times_ns
    assert [column.dtype for column in (loaded.labels, loaded.heights, loaded.widths)] == [np.int64, np.int32, np.int32]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_saved_index_has_the_mode_that_umask_gives(mask: int, mode: int, train_index: Index, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        train_index.save(tmp_path / "train.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "train.safetensors").stat().st_mode) == mode


def test_a_fifo_in_place_of_the_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.safetensors")
    with pytest.raises(DataError, match="is a named pipe"):
        Index.load(tmp_path / "train.safetensors")


def test_names_outside_of_utf8_survive(train_index: Index, tmp_path: Path) -> None:
    strange = os.fsdecode(b"caf\xe9.jpg")
    paths = (*train_index.paths[:-2], "train/ant/naïve 図.jpg", strange)
    dataclasses.replace(train_index, paths=paths).save(tmp_path / "train.safetensors")
    assert tuple(Index.load(tmp_path / "train.safetensors").paths) == paths


def test_saving_replaces_and_leaves_nothing_else_behind(train_index: Index, val_index: Index, tmp_path: Path) -> None:
    file = tmp_path / "index.safetensors"
    train_index.save(file)
    val_index.save(file)
    assert Index.load(file).fingerprint() == val_index.fingerprint()
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.safetensors"]


def test_a_failed_save_leaves_the_old_file_as_it_was(
    train_index: Index, val_index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "index.safetensors"
    train_index.save(file)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        val_index.save(file)
    assert Index.load(file).fingerprint() == train_index.fingerprint()
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.safetensors"]


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_torn_file_is_refused(kept: float, train_index: Index, tmp_path: Path) -> None:
    file = tmp_path / "index.safetensors"
    train_index.save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(DataError, match=r"index\.safetensors: is not a saved index"):
        Index.load(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.safetensors"):
        Index.load(tmp_path / "none.safetensors")


def test_fingerprint_sees_paths_labels_and_sizes_but_not_the_root(train_index: Index) -> None:
    def changed(**columns: object) -> str:
        return dataclasses.replace(train_index, **columns).fingerprint()  # type: ignore[arg-type]

    whole = train_index.fingerprint()
    assert changed(root="/elsewhere") == whole
    assert changed(paths=("x", *train_index.paths[1:])) != whole
    assert changed(labels=train_index.labels[::-1]) != whole
    assert changed(heights=train_index.heights + 1) != whole
    assert changed(widths=train_index.widths + 1) != whole
    assert changed(heights=train_index.widths, widths=train_index.heights) != whole


def test_fingerprint_never_changes() -> None:
    one = Index("/data", ("a", "b"), ("a/0.jpg", "b/0.jpg"), np.array([0, 1]), np.array([3, 4]), np.array([5, 6]))
    assert one.fingerprint() == "796bc674803db046fba45633e71aef32ef5e0cbd348d80692e8c31fce8c33691"


def test_columns_must_fit_together() -> None:
    one = np.array([0])
    with pytest.raises(ValueError, match="one length above 0"):
        Index("/data", ("a",), ("x", "y"), one, one, one)
    with pytest.raises(ValueError, match="one length above 0"):
        Index("/data", ("a",), (), one[:0], one[:0], one[:0])
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.0"):
        Index("/data", ("a",), ("x",), one + 1, one, one)


def test_an_index_is_current_until_a_file_comes_or_goes(image_folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.jpg").write_bytes((image_folder / split / name / "0.jpg").read_bytes())

    def set_time(folder: Path) -> None:  # file systems may be too coarse for two changes in a row
        os.utime(folder, ns=(0, folder.stat().st_mtime_ns + 1))

    index = index_image_folder(str(tmp_path), "train")
    assert is_current(index)
    set_time(tmp_path / "val" / "ant")
    assert is_current(index)
    set_time(tmp_path / "train" / "cat")
    assert not is_current(index)
    index = index_image_folder(str(tmp_path), "train")
    set_time(tmp_path / "train")
    assert not is_current(index)
    assert not is_current(dataclasses.replace(index, root=str(tmp_path / "gone")))
    assert not is_current(dataclasses.replace(index, folder_times_ns={}))


def test_labels_must_fit_the_model(train_index: Index) -> None:
    check_labels(train_index, 3)
    check_labels(train_index, 1000)
    problem = (
        r"4 of 12 images have labels of 2 or more, for example train/cat/0.jpg with 2; the model predicts 2 .* to 3"
    )
    with pytest.raises(DataError, match=problem):
        check_labels(train_index, 2)


def test_more_classes_than_the_model_predicts_are_refused_and_fewer_are_told() -> None:
    assert compare_classes("/data", ["ant", "bee"], 2) == []
    [warning] = compare_classes("/data", ["ant", "bee"], 5)
    assert warning.startswith("/data: has 2 classes and the model predicts 5")
    with pytest.raises(DataError, match=r"/data: has 2 classes; the model predicts 1 .* Set model\.num_classes to 2"):
        compare_classes("/data", ["ant", "bee"], 1)


def test_splits_must_have_the_same_classes() -> None:
    check_same_classes("/data", ["ant", "bee"], ("ant", "bee"))
    with pytest.raises(DataError, match=r"/data: train has 2 classes and val has 1: only in train: bee \(1\)"):
        check_same_classes("/data", ["ant", "bee"], ["ant"])
    with pytest.raises(DataError, match="the same names in another order"):
        check_same_classes("/data", ["ant", "bee"], ["bee", "ant"])


def test_val_may_have_fewer_classes_where_its_labels_are_those_of_train() -> None:
    check_same_classes("/data", ["ant", "bee"], ["bee"], subset=True)
    with pytest.raises(DataError, match=r"only in val: cat \(1\)"):
        check_same_classes("/data", ["ant", "bee"], ["bee", "cat"], subset=True)
