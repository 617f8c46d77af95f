"""A small ImageNet in the files of the real one: five classes, three images each in train, eleven images in val."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher import cli

scipy_io = pytest.importorskip("scipy.io")

# In the devkit, the numbers of the classes are not in the order of their names.
IDS = {1: "n02119789", 2: "n01440764", 3: "n02100735", 4: "n02110185", 5: "n01443537"}
TRUTH = [3, 1, 5, 2, 4, 4, 1, 2, 3, 5, 1]
VAL = {f"ILSVRC2012_val_{number:08d}": IDS[label] for number, label in enumerate(TRUTH, start=1)}


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


TRAIN = {
    f"{wnid}.tar": {f"{wnid}_{number}.JPEG": jpeg(100 * label + number) for number in (7, 3, 5)}
    for label, wnid in IDS.items()
}


def tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def meta(names: Mapping[int, str] = IDS) -> bytes:
    """synsets as in the devkit: those with a number above the classes have children."""
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(label, wnid, f"the {wnid}", 0) for label, wnid in names.items()] + [(6, "n00001740", "entity", 5)]
    synsets = np.array(rows, dtype=fields)[:, None]
    content = io.BytesIO()
    scipy_io.savemat(content, {"synsets": synsets}, do_compression=True)
    return content.getvalue()


def devkit(truth: str = "\n".join(map(str, TRUTH)) + "\n", mat: bytes | None = None) -> bytes:
    top = "ILSVRC2012_devkit_t12"
    files = {
        f"{top}/readme.txt": b"...",
        f"{top}/data/meta.mat": meta() if mat is None else mat,
        f"{top}/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    return tar(files, "w:gz")


@dataclass(frozen=True)
class Files:
    """The downloaded files, and the folder to write to."""

    folder: Path
    train: Path
    val: Path
    devkit: Path

    def arguments(self, *names: str) -> list[str]:
        options = {"train": ["--train-tar", str(self.train)], "val": ["--val-tar", str(self.val)]}
        options["devkit"] = ["--devkit", str(self.devkit)]
        return [text for name in names or options for text in options[name]]

    def run(self, *names: str) -> int:
        return cli.main(["prepare", "imagenet", str(self.folder), *self.arguments(*names)])


def write_files(folder: Path) -> Files:
    """The files, downloaded to `folder`."""
    found = Files(folder / "imagenet", folder / "train.tar", folder / "val.tar", folder / "devkit.tar.gz")
    found.train.write_bytes(tar({name: tar(images) for name, images in TRAIN.items()}))
    found.val.write_bytes(tar({f"{name}.JPEG": jpeg(number) for number, name in enumerate(VAL)}))
    found.devkit.write_bytes(devkit())
    return found


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def expected(split: str) -> dict[str, bytes]:
    if split == "train":
        return {f"{name[:-4]}/{image}": data for name, images in TRAIN.items() for image, data in images.items()}
    return {f"{wnid}/{name}.JPEG": jpeg(number) for number, (name, wnid) in enumerate(VAL.items())}


def failing_after(calls: int, function: Callable[..., object], error: int = errno.ENOSPC) -> Callable[..., object]:
    done = 0

    def call(*arguments: object, **options: object) -> object:
        nonlocal done
        done += 1
        if done > calls:
            raise OSError(error, os.strerror(error), str(arguments[0]))
        return function(*arguments, **options)

    return call
