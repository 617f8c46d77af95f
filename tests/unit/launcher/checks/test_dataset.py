"""The data set before the run: with and without a saved index, whole and broken."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from shard_files import samples, write_tar

from launcher.checks import dataset
from launcher.checks.finding import Finding
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.prepare.packing import Options, pack
from launcher.run.directory import RunDirectory
from resnet_dist.data.index.shared import shared_indices
from resnet_dist.recipe.schema import CacheRecipe, DataRecipe


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            pixels = np.full((12, 16, 3), 128, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / label / "0.jpg")
    return folder


def config(root: Path, num_classes: int = 2, source: str = "imagefolder") -> RunConfig:
    return configs.from_mapping(
        {
            "schema": 1, "name": "run", "storage": str(root.parent / "runs"), "duration": "1 steps", "place": "local",
            "batch": {"size": 2}, "model": {"name": "resnet20", "num_classes": num_classes},
            "data": {"root": str(root), "resolution": 8, "source": source}, "schedule": {"peak_lr": 0.1},
        },
        root,
    )  # fmt: skip


def save_index(run: RunConfig) -> Path:
    """Save the indices as a start of `run` does."""
    folder = RunDirectory(Path(run.storage), run.name).index
    shared_indices(run.data, run.model.num_classes, 0, 1, folder)
    return folder


def statuses(run: RunConfig) -> list[tuple[str, str]]:
    return [(finding.name, finding.status) for finding in dataset.data(run)]


def only(run: RunConfig) -> Finding:
    (finding,) = [finding for finding in dataset.data(run) if finding.status == "fail"]
    return finding


def test_folders_are_read_and_a_sample_of_each_split_decoded(root: Path) -> None:
    assert statuses(config(root)) == [("data", "pass"), ("sample", "pass")]


def test_a_saved_index_is_read(root: Path) -> None:
    run = config(root)
    save_index(run)
    first, second = dataset.data(run)
    assert first.found.startswith("index of 2 train and 2 val images in 2 classes")
    assert (first.status, second.status) == ("pass", "pass")


def test_an_index_of_another_root_is_not_read(root: Path, tmp_path: Path) -> None:
    save_index(config(root))
    other = Path(shutil.copytree(root, tmp_path / "other"))
    for split in ("train", "val"):
        shutil.copytree(other / split / "cat", other / split / "owl")
    found = [finding.found for finding in dataset.data(config(other, num_classes=3))]
    assert found == [
        f"{other}: 3 classes; the run lists and indexes the images when it starts",
        "train/cat/0.jpg and val/cat/0.jpg decoded to [8, 8] pixels",
    ]


def test_an_index_is_not_read_after_its_folders_have_changed(root: Path) -> None:
    run = config(root)
    save_index(run)
    (root / "train" / "cat" / "1.jpg").write_bytes((root / "train" / "cat" / "0.jpg").read_bytes())
    first, second = dataset.data(run)
    assert "2 classes; the run lists and indexes the images" in first.found
    assert (first.status, second.status) == ("pass", "pass")


def test_a_damaged_index_is_ignored_as_the_run_does(root: Path) -> None:
    run = config(root)
    (save_index(run) / "val.safetensors").write_bytes(b"torn")
    assert statuses(run) == [("data", "pass"), ("sample", "pass")]


def test_what_the_index_leaves_out_is_a_warning(root: Path) -> None:
    run = config(root)
    (root / "train" / "cat" / "notes.txt").touch()
    save_index(run)
    assert statuses(run) == [("data", "pass"), ("data", "warn"), ("sample", "pass")]


def test_fewer_classes_than_the_model_predicts_are_a_warning(root: Path) -> None:
    run = config(root, num_classes=5)
    for _ in ("folders", "index"):
        _, warning, _ = dataset.data(run)
        assert (warning.name, warning.status) == ("data", "warn")
        assert "has 2 classes and the model predicts 5" in warning.found
        save_index(run)


def test_a_missing_root_fails(root: Path, tmp_path: Path) -> None:
    assert "no" in only(config(tmp_path / "nowhere")).found


def test_classes_that_differ_fail(root: Path) -> None:
    (root / "val" / "owl").mkdir()
    assert "only in val: owl" in only(config(root)).found


def test_more_classes_than_the_model_predicts_fail(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "owl").mkdir()
    finding = only(config(root))
    assert "has 3 classes; the model predicts 2 classes. Set model.num_classes to 3" in finding.found


def test_an_image_that_cannot_be_decoded_fails(root: Path) -> None:
    file = root / "train" / "cat" / "0.jpg"
    file.write_bytes(file.read_bytes()[:300])  # its header is whole, its pixels are not
    assert "train/cat" in only(config(root)).found


def test_a_source_of_the_users_own_is_not_called(root: Path) -> None:
    assert statuses(config(root, source="no_such_module:function")) == [("data", "skipped")]


def test_images_that_are_made_on_the_device_need_no_check(root: Path) -> None:
    run = config(root)
    data = replace(run.data, source="synthetic", root="", num_samples=1234)
    [finding] = dataset.data(replace(run, data=data))
    assert (finding.status, "1,234 random images" in finding.found) == ("pass", True)


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    """The images below an address."""
    files = MemoryFileSystem()
    for path in root.rglob("*.jpg"):
        files.pipe_file(f"/bucket/images/{path.relative_to(root)}", path.read_bytes())
    yield "memory://bucket/images"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def at(address: str, root: Path) -> RunConfig:
    run = config(root)
    return replace(run, data=replace(run.data, root=address, cache=CacheRecipe(folder=str(root.parent / "cache"))))


def test_an_address_is_listed_and_a_sample_of_each_split_decoded(root: Path, address: str) -> None:
    first, second = dataset.data(at(address, root))
    assert (first.status, second.status) == ("pass", "pass")
    assert first.found == "memory://bucket/images: 2 classes; the run lists and indexes the images when it starts"


def test_an_index_of_an_address_is_read_until_an_object_changes(root: Path, address: str) -> None:
    run = at(address, root)
    save_index(run)
    assert next(dataset.data(run)).found.startswith("index of 2 train and 2 val images in 2 classes")
    changed = root / "train" / "cat" / "0.jpg"
    MemoryFileSystem().pipe_file("/bucket/images/train/cat/0.jpg", changed.read_bytes() + b"0")
    assert "when it starts" in next(dataset.data(run)).found


def test_a_wrong_key_is_an_error_of_the_config(root: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("unknown")
    run = config(root)
    found = only(replace(run, data=replace(run.data, classes=str(tmp_path / "classes.txt"))))
    assert found.status == "fail"
    assert "`launcher train` ends with exit code 78" in found.advice


def test_an_address_that_is_wrong_fails_with_what_the_run_would_exit_with(
    root: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = only(at("memory://bucket/nothing", root))
    assert "memory://bucket/nothing: there is no such object or bucket" in found.found
    assert "65" in found.advice

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "ls", refused)
    found = only(at(address, root))
    assert "access is refused" in found.found
    assert "69" in found.advice


def test_packed_shards_need_no_run_to_have_an_index(root: Path) -> None:
    list(pack(DataRecipe(root=str(root)), root.parent / "packed", Options()))
    run = config(root.parent / "packed", source="packed")
    first, *others = dataset.data(run)
    assert first.found == "index of 2 train and 2 val images in 2 classes"
    assert [finding.name for finding in others] == ["sample"]
    (root.parent / "packed/val-000000.tar").unlink()
    assert "val-000000.tar: is missing" in only(run).found


def test_shards_are_found_before_a_run_and_not_read(root: Path) -> None:
    for split in ("train", "val"):
        write_tar(root.parent / f"tars/{split}-0.tar", samples([0, 1], 2))
    (finding,) = dataset.data(config(root.parent / "tars", source="webdataset"))
    assert "has shards; the run lists and indexes the images when it starts" in finding.found
    (root.parent / "tars/val-0.tar").unlink()
    (finding,) = dataset.data(config(root.parent / "tars", source="webdataset"))
    assert "has no file *.tar of the split val" in finding.found
