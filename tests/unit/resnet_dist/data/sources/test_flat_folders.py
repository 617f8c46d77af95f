"""Image folders whose validation images lie flat: those of ImageNet, Tiny-ImageNet and others."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from resnet_dist.data.sources.by_name import index_image_folder
from resnet_dist.data.sources.image_folder import an_image, list_images
from resnet_dist.data.sources.listing import Split
from resnet_dist.errors import DataError


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def flat_val(folder: Path, name: str) -> Path:
    """Move all images of val into val itself, as `name` with a number."""
    val = folder / "val"
    for number, image in enumerate(sorted(val.glob("*/*.jpg")), 1):
        image.rename(val / name.format(number))
    for below in ("ant", "bee", "cat"):
        (val / below).rmdir()
    return val


@pytest.mark.parametrize("split", ["train", "val"])
def test_imagenets_flat_validation_images_name_the_command_that_sorts_them(folder: Path, split: Split) -> None:
    val = flat_val(folder, "ILSVRC2012_val_{:08d}.JPEG")
    with pytest.raises(DataError, match="has no class folder") as caught:
        list_images(str(folder), split)
    assert caught.value.path == str(val)
    assert f"launcher prepare imagenet {shlex.quote(str(folder))} --devkit" in caught.value.problem


def test_other_flat_images_are_to_be_moved_into_class_folders(folder: Path) -> None:
    flat_val(folder, "{}.jpg")
    with pytest.raises(DataError, match=r"its 6 images lie flat\. Move each into the folder of its class, val/CLASS"):
        list_images(str(folder), "val")


@pytest.fixture
def tiny(folder: Path) -> Path:
    """The images in the layout of Tiny-ImageNet."""
    for name in ("ant", "bee", "cat"):
        (folder / "train" / name / "images").mkdir()
        for image in (folder / "train" / name).glob("*.jpg"):
            image.rename(image.parent / "images" / f"{name}_{image.stem}.JPEG")
        (folder / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t9\t9\n")
    lines = []
    for number, image in enumerate(sorted((folder / "val").glob("*/*.jpg"))):
        lines.append(f"val_{number}.JPEG\t{image.parent.name}\t0\t32\t44\t62\n")
        (folder / "val" / "images").mkdir(exist_ok=True)
        image.rename(folder / "val" / "images" / f"val_{number}.JPEG")
    for name in ("ant", "bee", "cat"):
        (folder / "val" / name).rmdir()
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_tiny_imagenet_says_how_to_sort_val_and_is_then_read_as_torchvision_reads_it(tiny: Path) -> None:
    with pytest.raises(DataError, match="Tiny-ImageNet's images in one folder") as caught:
        list_images(str(tiny), "train")
    assert caught.value.path == str(tiny / "val")
    command = caught.value.problem.partition("in that folder: ")[2]
    subprocess.run(["bash", "-euc", command], check=True, cwd=caught.value.path)
    for split in ("train", "val"):
        index = index_image_folder(str(tiny), split)  # type: ignore[arg-type]
        theirs = ImageFolder(str(tiny / split))
        assert [(index.path(row), int(index.labels[row])) for row in range(len(index))] == theirs.samples
    assert index.notes == ()
    [note] = index_image_folder(str(tiny), "train").notes
    assert note.endswith("left out files without the suffix of an image: 3, for example ant/ant_boxes.txt")
    assert an_image(str(tiny), "train").endswith("train/ant/images/ant_0.JPEG")
