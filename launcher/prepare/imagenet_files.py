"""The files in which ImageNet (ILSVRC2012) is distributed: what they hold, read in order and without a copy.

ILSVRC2012_img_train.tar       a tar of 1,000 tars nNNNNNNNN.tar, one for each class, with nNNNNNNNN_*.JPEG
ILSVRC2012_img_val.tar         ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG
ILSVRC2012_devkit_t12.tar.gz   data/ILSVRC2012_validation_ground_truth.txt has the number of the class of each image
                               of val, and data/meta.mat the name (WNID) of each number
LOC_val_solution.csv           the same in Kaggle's copy, with names
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from resnet_dist import input_files
from resnet_dist.errors import DataError, MissingPackage

GROUND_TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"

_WNID = re.compile(r"n[0-9]{8}")  # of a synset of WordNet
_IMAGE = re.compile(r"[A-Za-z0-9_-]+\.(JPEG|jpeg|jpg)")
_AGAIN = "Copy or download it again"
_MOST_BYTES = 1 << 26  # of a file in the devkit; the largest has 1.4 MB


@contextlib.contextmanager
def opened(file: Path, option: str) -> Iterator[tarfile.TarFile]:
    """A tar file that is not compressed. Raises DataError, which names `option`, for another file."""
    with contextlib.ExitStack() as stack:
        with reading(file):
            stream = stack.enter_context(input_files.open_regular(file))
            try:
                archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
            except tarfile.TarError as error:
                raise DataError(str(file), f"is no tar file ({error}). Allowed: {option}") from error
        yield archive


@contextlib.contextmanager
def reading(file: Path | str) -> Iterator[None]:
    """Turn an error of reading a tar file into a DataError that names it."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(str(file), f"is cut short or damaged ({error}). {_AGAIN}") from error
    except OSError as error:
        raise DataError(str(file), f"cannot be read: {error.strerror or error}") from error


def class_tars(archive: tarfile.TarFile, file: Path) -> dict[str, tarfile.TarInfo]:
    """The tars of the classes in the tar of train, by WNID, in their order. DataError for another file."""
    with reading(file):
        members = archive.getmembers()
        _check_end(archive)
    found: dict[str, tarfile.TarInfo] = {}
    for member in members:
        name = Path(member.name)
        if not (member.isreg() and name.suffix == ".tar" and _WNID.fullmatch(name.stem)):
            allowed = "one tar nNNNNNNNN.tar for each class, as in ILSVRC2012_img_train.tar"
            raise DataError(str(file), f"holds {member.name!r}. Allowed: {allowed}")
        if name.stem in found:
            raise DataError(str(file), f"holds {member.name!r} twice. {_AGAIN}")
        found[name.stem] = member
    if not found:
        raise DataError(str(file), f"holds nothing. {_AGAIN}")
    return found


def class_images(archive: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> Iterator[tuple[str, bytes]]:
    """The images (name, content) in a tar inside of a tar. DataError if it is damaged."""
    place = f"{file}: {member.name}"
    with reading(place):
        stream = archive.extractfile(member)
        assert stream is not None  # a regular file
        inner = tarfile.TarFile(fileobj=stream)
    with stream, inner:
        yield from images(inner, place)


def images(archive: tarfile.TarFile, place: str) -> Iterator[tuple[str, bytes]]:
    """The images (name without folders, content) in a tar file, in its order. DataError if it is damaged."""
    seen: set[str] = set()
    while True:
        with reading(place):
            member = archive.next()
            if member is None:
                _check_end(archive)
                break
            if member.isdir():
                continue
            name = Path(member.name).name
            if not (member.isreg() and _IMAGE.fullmatch(name)) or name in seen:
                found = "twice" if name in seen else "which is not an image"
                raise DataError(place, f"holds {member.name!r}, {found}. Allowed: images NAME.JPEG")
            stream = archive.extractfile(member)
            assert stream is not None
            content = stream.read()
        seen.add(name)
        yield name, content
    if not seen:
        raise DataError(place, f"holds no image. {_AGAIN}")


def is_image(name: str) -> bool:
    """Whether a file has a name as ImageNet's images have."""
    return _IMAGE.fullmatch(name) is not None


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError unless the archive has the mark of its end."""
    if not input_files.ends_as_tar(cast("BinaryIO", archive.fileobj), archive.offset):
        raise tarfile.ReadError("there is no mark of the end")


def true_classes(file: Path) -> dict[str, str]:
    """The WNID of each image of val by its name without suffix, from the devkit or from LOC_val_solution.csv.

    Raises DataError for another file, and MissingPackage if the devkit is to be read without scipy.
    """
    if file.suffix == ".csv":
        return _from_csv(file)
    if importlib.util.find_spec("scipy") is None:
        raise MissingPackage("--devkit (its MATLAB file)", "scipy", "pip install scipy")
    found: dict[str, bytes] = {}
    with reading(file), input_files.open_regular(file) as stream, _devkit(stream, file) as archive:
        for member in archive:
            for wanted in (GROUND_TRUTH, META):
                if member.isreg() and f"/{member.name}".endswith(f"/{wanted}") and member.size <= _MOST_BYTES:
                    content = archive.extractfile(member)
                    found[wanted] = b"" if content is None else content.read()
    for wanted in (GROUND_TRUTH, META):
        if wanted not in found:
            raise DataError(str(file), f"holds no {wanted}. Allowed: ILSVRC2012_devkit_t12.tar.gz")
    names = _names(found[META], f"{file}: {META}")
    place, classes = f"{file}: {GROUND_TRUTH}", dict[str, str]()
    for number, line in enumerate(found[GROUND_TRUTH].decode("ascii", "replace").split(), start=1):
        if line not in names:
            raise DataError(place, f"line {number} is {line!r}. Allowed: a class from 1 to {len(names)}")
        classes[f"ILSVRC2012_val_{number:08d}"] = names[line]
    if not classes:
        raise DataError(place, "is empty")
    return classes


def _devkit(stream: BinaryIO, file: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r:*")
    except tarfile.ReadError as error:  # what each kind of compression says about it
        raise DataError(str(file), f"is not ILSVRC2012_devkit_t12.tar.gz, or is damaged. {_AGAIN}") from error


def _names(content: bytes, place: str) -> dict[str, str]:
    """WNID by ILSVRC2012_ID, as text, of the classes in meta.mat. Synsets above the classes have children."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        names = {str(int(one["ILSVRC2012_ID"])): str(one["WNID"]) for one in synsets if int(one["num_children"]) == 0}
    except Exception as error:  # scipy's errors for a damaged file are of many kinds
        raise DataError(place, f"cannot be read ({type(error).__name__}: {error}). {_AGAIN}") from error
    if wrong := [name for name in names.values() if not _WNID.fullmatch(name)]:
        raise DataError(place, f"names a class {wrong[0]!r}. Allowed: nNNNNNNNN")
    return names


def _from_csv(file: Path) -> dict[str, str]:
    """ImageId,PredictionString: the latter begins with the WNID."""
    try:
        with input_files.open_regular(file) as stream:
            rows = list(csv.reader(stream.read().decode("utf-8").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(str(file), f"cannot be read: {error}") from error
    classes = {row[0]: row[1].split(" ")[0] for row in rows[1:] if len(row) == 2}
    if len(classes) != len(rows) - 1 or not classes or not all(map(_WNID.fullmatch, classes.values())):
        allowed = "Kaggle's LOC_val_solution.csv, with the columns ImageId and PredictionString"
        raise DataError(str(file), f"is no list of images and classes. Allowed: {allowed}")
    return classes
