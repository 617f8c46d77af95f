"""Writes ImageNet's image folders: each split under another name, which is changed when the split is whole.

FOLDER/train/CLASS/*.JPEG, FOLDER/val/CLASS/*.JPEG
FOLDER/imagenet.json         classes, images and bytes of each split
FOLDER/.train-partial/       classes that are whole, and in .CLASS the one that is being written
FOLDER/.train-finished the classes that are whole
FOLDER/.val-partial/         val from a tar
FOLDER/.val-sorting/         FOLDER/val while its images are moved into the folders of their classes
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from launcher.formatting import count, in_bytes, listed
from launcher.prepare import imagenet_files
from launcher.prepare.locks import locked
from launcher.prepare.progress import Progress
from resnet_dist.errors import DataError
from resnet_dist.input_files import record_of
from resnet_dist.telemetry import json_lines

NUM_CLASSES = 1000
NUM_IMAGES: Mapping[str, int] = {"train": 1_281_167, "val": 50_000}  # if there are 1,000 classes

_CARD, _LOCK = "imagenet.json", ".imagenet-lock"
_AT_ONCE = 64  # images that the threads write before the next ones are read
_THREADS = 8  # a shared disk takes milliseconds to create a file
_MB = 10**6
_CONTINUE = "The same command continues from here"


@dataclass(frozen=True)
class Counts:
    """What a split consists of."""

    classes: int
    images: int
    bytes: int
    tar_bytes: int | None = None  # size of the file it was written from


def write_imagenet(folder: Path, train_tar: Path | None, val_tar: Path | None, devkit: Path | None) -> Iterator[str]:
    """Write the splits that are given to `folder`; yields what was done, line by line.

    With `devkit` alone, the images that lie flat in
    folder/val are moved into the folders of their classes. A split that this function has written is kept, and one that
    was interrupted is continued. Raises DataError for wrong, damaged or incomplete files, for a folder that holds
    something else or cannot be written, and MissingPackage for a devkit without scipy.
    """
    truth = {} if devkit is None else imagenet_files.true_classes(devkit)
    if devkit is not None:
        _check("val", len(set(truth.values())), len(truth), devkit)
    if val_tar is not None:  # before the hours that train takes
        with imagenet_files.opened(val_tar, "ILSVRC2012_img_val.tar") as archive:
            next(imagenet_files.images(archive, str(val_tar)))
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with _writing(folder):
            stack.enter_context(locked(folder / _LOCK, folder))
        if train_tar is not None:
            yield from _once(folder, "train", train_tar, partial(_write_train, folder, train_tar, set(truth.values())))
        if val_tar is not None:
            assert devkit is not None
            yield from _once(folder, "val", val_tar, partial(_write_val, folder, val_tar, devkit, truth))
        elif train_tar is None:
            assert devkit is not None
            yield from _once(folder, "val", None, partial(_sort_val, folder, devkit, truth))


def _once(folder: Path, split: str, tar: Path | None, write: Callable[[], Counts]) -> Iterator[str]:
    """Write a split from `tar`, or sort it where it is; keep it if the card says that this command has written it."""
    final = folder / split
    known = record_of(Counts, _card(folder).get(split)) if final.exists() else None
    if tar is not None and final.exists():
        _check_written(final, known, tar)
    if tar is None and known is not None and _loose(final):
        known = None
    counts = write() if known is None else known
    of_all = f" of ImageNet's {NUM_CLASSES:,}" if counts.classes < NUM_CLASSES else ""
    written = f"{counts.images:,} images in {counts.classes:,}{of_all} classes"
    yield f"{final}: {written}{'' if known is None else ', written before'}"


def _check_written(final: Path, known: Counts | None, tar: Path) -> None:
    """Raise DataError if the folder of a split is not what this command has written from `tar`."""
    if known is None:
        raise DataError(str(final), "exists, and this command has not written it. Allowed: another folder")
    if loose := _loose(final):
        problem = f"has images outside of class folders: {listed(sorted(loose))}"
        raise DataError(str(final), f"{problem}. Sort them with --devkit alone, or choose another folder")
    with imagenet_files.reading(tar):
        size = tar.stat().st_size
    if known.tar_bytes not in (None, size):
        written = f"was written from a tar of {known.tar_bytes:,} bytes, and {tar} has {size:,}"
        raise DataError(str(final), f"{written}. Allowed: the same file, or another folder")


def _loose(split: Path) -> set[str]:
    """The names of the images in the folder of a split that lie outside of class folders."""
    with _writing(split), os.scandir(split) as entries:
        return {entry.name for entry in entries if imagenet_files.is_image(entry.name) and entry.is_file()}


def _card(folder: Path) -> dict[str, Any]:
    """What this command has written to `folder`."""
    try:
        content = json.loads((folder / _CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _finish(folder: Path, split: str, written: Path, counts: Counts, source: Path) -> Counts:
    """Check the whole split in the folder `written`, and give it its name."""
    _check(split, counts.classes, counts.images, source)
    with _writing(folder):
        temporary = folder / f".{_CARD}"
        temporary.write_text(json.dumps({**_card(folder), split: asdict(counts)}, indent=2) + "\n", encoding="utf-8")
        os.sync()
        temporary.replace(folder / _CARD)
        written.rename(folder / split)
    return counts


def _check(split: str, num_classes: int, num_images: int, source: Path) -> None:
    if num_classes == NUM_CLASSES and num_images != NUM_IMAGES[split]:
        expected = f"ImageNet's {split} split has {NUM_IMAGES[split]:,}. Copy or download the file again"
        raise DataError(str(source), f"has {num_images:,} images of {num_classes:,} classes; {expected}")


# --- train


def _write_train(folder: Path, tar: Path, of_val: Collection[str]) -> Counts:
    new, record = folder / ".train-partial", folder / ".train-finished"
    with imagenet_files.opened(tar, "ILSVRC2012_img_train.tar") as archive, ThreadPoolExecutor(_THREADS) as pool:
        members = imagenet_files.class_tars(archive, tar)
        _check_classes(tar, set(members), set(of_val))
        finished = {
            wnid: counts
            for wnid, (size, counts) in _finished(record).items()
            if wnid in members and members[wnid].size == size and _counted(new / wnid) == counts
        }
        total = sum(member.size for member in members.values())
        done = sum(members[wnid].size for wnid in finished)
        _check_space(folder, total - done)
        progress = Progress("train", total // _MB, "MB")
        with _writing(folder):
            _keep_only(new, finished)
            for wnid in [wnid for wnid in members if wnid not in finished]:
                progress.update(done // _MB)
                images = imagenet_files.class_images(archive, members[wnid], tar)
                files = ((new / f".{wnid}" / name, content) for name, content in images)
                finished[wnid] = _write_files(pool, files)
                (new / f".{wnid}").rename(new / wnid)
                json_lines.append(record, {"class": wnid, "tar": members[wnid].size, **asdict(finished[wnid])})
                done += members[wnid].size
        progress.end()
    counts = [sum(getattr(one, name) for one in finished.values()) for name in ("classes", "images", "bytes")]
    whole = _finish(folder, "train", new, replace(Counts(*counts), tar_bytes=tar.stat().st_size), tar)
    with _writing(folder):
        record.unlink(missing_ok=True)
    return whole


def _check_classes(tar: Path, of_train: set[str], of_val: set[str]) -> None:
    if of_val and of_val != of_train:
        missing, more = listed(sorted(of_val - of_train)) or "none", listed(sorted(of_train - of_val)) or "none"
        found = f"has {len(of_train):,} classes, and the devkit has {len(of_val):,}"
        raise DataError(str(tar), f"{found}; missing in the tar: {missing}; missing in the devkit: {more}")


def _keep_only(folder: Path, finished: Collection[str]) -> None:
    """Create the folder of train, or remove all but the finished classes and their record."""
    folder.mkdir(exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in finished:
            shutil.rmtree(entry)


def _finished(record: Path) -> dict[str, tuple[int, Counts]]:
    """The classes that an interrupted command has written: the size of their tar, and what is in it."""
    if not record.is_file():
        return {}
    return {name: (size, counts) for name, size, counts in json_lines.read(record, _finished_class)}


def _finished_class(line: object) -> tuple[str, int, Counts] | None:
    match line:
        case {"class": str(name), "tar": int(size), "classes": int(classes), "images": int(images), "bytes": int(num)}:
            return name, size, Counts(classes, images, num)
    return None


def _counted(folder: Path) -> Counts:
    """What is in the folder of a class. After a loss of power, files may be empty."""
    sizes: list[int] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        sizes = [entry.stat().st_size for entry in entries]
    return Counts(1, len(sizes), sum(sizes))


# --- val


def _write_val(folder: Path, tar: Path, devkit: Path, truth: Mapping[str, str]) -> Counts:
    new = folder / ".val-partial"
    with imagenet_files.opened(tar, "ILSVRC2012_img_val.tar") as archive, ThreadPoolExecutor(_THREADS) as pool:
        _check_space(folder, tar.stat().st_size)
        progress = Progress("val", tar.stat().st_size // _MB, "MB")

        def files() -> Iterator[tuple[Path, bytes]]:
            for name, content in imagenet_files.images(archive, str(tar)):
                progress.update(archive.offset // _MB)
                if (wnid := truth.get(Path(name).stem)) is None:
                    if name.startswith("ILSVRC2012_val_"):
                        more = f"has the classes of {len(truth):,} images, and {tar} has more: {name}"
                        raise DataError(str(devkit), f"{more}. Copy or download it again")
                    raise DataError(str(tar), f"holds {name}, of which the devkit has no class: is it the tar of val?")
                yield new / wnid / name, content

        with _writing(folder):
            _remove(new)
            counts = _write_files(pool, files())
        progress.end()
    if counts.images != len(truth):
        raise DataError(str(tar), f"has {counts.images:,} images, and the devkit has the classes of {len(truth):,}")
    return _finish(folder, "val", new, replace(counts, tar_bytes=tar.stat().st_size), tar)


def _sort_val(folder: Path, devkit: Path, truth: Mapping[str, str]) -> Counts:
    """Move the images that lie in folder/val into folders of their classes. Nothing is moved unless all are there."""
    flat, sorting = folder / "val", folder / ".val-sorting"
    if flat.exists() and sorting.exists():
        raise DataError(str(sorting), f"is what an interrupted sort has left, and {flat} exists, too. Move one away")
    _check_flat(sorting if sorting.exists() else flat, devkit, truth, is_new=not sorting.exists())
    num_bytes = 0
    progress = Progress("val", len(truth), "images")
    with _writing(folder):
        if not sorting.exists():
            flat.rename(sorting)
        for number, (name, wnid) in enumerate(truth.items()):
            progress.update(number)
            old, new = sorting / f"{name}.JPEG", sorting / wnid / f"{name}.JPEG"
            if old.exists():
                new.parent.mkdir(exist_ok=True)
                old.rename(new)
            num_bytes += new.stat().st_size
    progress.end()
    counts = Counts(len(set(truth.values())), len(truth), num_bytes)
    return _finish(folder, "val", sorting, counts, flat)


def _check_flat(flat: Path, devkit: Path, truth: Mapping[str, str], *, is_new: bool) -> None:
    """Raise DataError unless all images of `truth`, and no others, are in the folder or in those of their classes."""
    loose = _loose(flat) if flat.exists() else set()
    images = {f"{name}.JPEG": wnid for name, wnid in truth.items()}
    if is_new and loose.isdisjoint(images):
        found = f"has no image {next(iter(images))} outside of class folders"
        raise DataError(str(flat), f"{found}. Allowed: the images of ILSVRC2012_img_val.tar; or --val-tar FILE")
    if more := sorted(loose - images.keys()):
        found = f"has no class for {count(len(more), 'image')} in {flat}: {listed(more)}"
        raise DataError(str(devkit), f"{found}. Nothing was moved. Copy or download it again")
    missing = [name for name, wnid in images.items() if name not in loose and not (flat / wnid / name).is_file()]
    if missing:
        raise DataError(str(flat), f"{len(missing):,} images are missing: {listed(missing)}")


# --- files


def _write_files(pool: ThreadPoolExecutor, files: Iterator[tuple[Path, bytes]]) -> Counts:
    """Write files in class folders, which are created."""
    folders: set[Path] = set()
    num_images = num_bytes = 0
    while some := list(itertools.islice(files, _AT_ONCE)):
        for parent in {file.parent for file, _ in some} - folders:
            parent.mkdir(parents=True)
            folders.add(parent)
        list(pool.map(lambda one: one[0].write_bytes(one[1]), some))  # raises what a thread has raised
        num_images += len(some)
        num_bytes += sum(len(content) for _, content in some)
    return Counts(len(folders), num_images, num_bytes)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise DataError(str(folder), f"has {in_bytes(free)} of free space, and the images need {in_bytes(num_bytes)}")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn an error of writing into a DataError that names the file, or `folder`."""
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else str(folder)
        raise DataError(place, f"cannot be written: {error.strerror or error}. {_CONTINUE}") from error
