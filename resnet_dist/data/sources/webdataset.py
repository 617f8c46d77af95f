"""WebDataset's shards: tar files with KEY.jpg and KEY.cls, or KEY.json, for each sample.

The format: https://github.com/webdataset/webdataset, "The WebDataset Format". A key is a member's path up to the first
dot of its last part. Only the headers of the members and the labels are read here; a sample is one range of its shard.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np

from resnet_dist.data.sources import shards as shard_files
from resnet_dist.data.sources.listing import SUFFIXES, Listing, Split, Tell
from resnet_dist.data.storage.local import Storage, storage_of
from resnet_dist.errors import DataError
from resnet_dist.input_files import ends_as_tar
from resnet_dist.recipe.schema import DataRecipe

_LABEL = "label"  # the default of data.label_key
_THREADS = 8  # shards that are read at once: reading waits for the disk or the network
_KEY = re.compile(r"((?:.*/|)[^./][^.]*)\.([^/]*)", re.DOTALL)
_LABEL_BYTES = 2**20  # of a label file or JSON object; larger ones are something else
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class _Image(NamedTuple):
    """An image in a shard: its name, its first byte, and its size in bytes."""

    name: str
    offset: int
    num_bytes: int


_Samples = dict[str, tuple[_Image, int]]  # images and labels by key


def list_tars(recipe: DataRecipe, split: Split, tell: Tell = lambda text: None) -> Listing:
    """The samples of the tar files of a split: shard after shard, in the order of their images.

    Raises DataError, with the shard and the member, for a shard that is compressed or cut short, a sample without image
    or label, two images of one key, and a label that is not a whole number or has no class name.
    """
    storage = storage_of(recipe.root, recipe)
    found = shard_files.find_shards(storage, split, ".tar", recipe.num_samples)
    names = shard_files.class_names(storage)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="tar") as pool:
        of_shards = []
        for samples in pool.map(lambda shard: _samples(storage, shard, recipe.label_key), found.paths):
            of_shards.append(samples)
            tell(f"{len(of_shards):,} of {len(found.paths):,} shards")
    images, labels = zip(*(sample for samples in of_shards for sample in samples.values()), strict=True)
    shard_numbers = np.repeat(np.arange(len(of_shards), dtype=np.int32), [len(samples) for samples in of_shards])
    if (row := shard_files.first_outside(labels, names)) is not None:
        place = f"{recipe.root}/{found.paths[shard_numbers[row]]}: {images[row].name}"
        raise DataError(place, shard_files.outside(labels[row], names))
    classes = shard_files.classes_of(labels, names)
    return Listing(
        classes=classes,
        paths=shard_files.distinct([image.name for image in images], shard_numbers, found.paths),
        labels=labels,
        folder_times_ns=found.times_ns,
        notes=(*found.notes, *shard_files.without_images(f"{recipe.root}: {split}", labels, classes)),
        shards=found.paths,
        shard_numbers=shard_numbers,
        offsets=np.array([image.offset for image in images], np.int64),
        num_bytes=np.array([image.num_bytes for image in images], np.int64),
    )


def _samples(storage: Storage, shard: str, label_key: str | None) -> _Samples:
    """The samples of one shard."""
    place = f"{storage.root}/{shard}"
    images: dict[str, _Image] = {}
    labels: dict[str, tuple[str, int]] = {}  # by key: the extension that it was read from, and the label
    wanted, other = ("json", "cls") if label_key is not None else ("cls", "json")
    num_tars = 0
    with storage.open(shard) as file:
        for member in _members(place, file):
            match = _KEY.fullmatch(member.name)
            if match is None or not member.isreg():
                continue
            key, extension = match[1], match[2].lower()
            if f".{extension}" in SUFFIXES:
                if key in images:
                    raise DataError(
                        f"{place}: {member.name}", f"is a second image of the key {key}; delete one of them"
                    )
                images[key] = _Image(member.name.removeprefix("./"), member.offset_data, member.size)
            elif extension == wanted or (extension == other and labels.get(key, (other,))[0] == other):
                if labels.get(key, ("",))[0] == extension:
                    raise DataError(f"{place}: {member.name}", "is a second label of this key; delete one of them")
                labels[key] = (extension, _label(place, file, member, extension, label_key or _LABEL))
            num_tars += extension == "tar"
    _check(place, images, labels, num_tars)
    return {key: (image, labels[key][1]) for key, image in images.items()}


def _check(place: str, images: dict[str, _Image], labels: dict[str, tuple[str, int]], num_tars: int) -> None:
    if num_tars and not images:
        problem = f"holds {num_tars:,} tar files and no images; ImageNet's own tar files are unpacked by"
        raise DataError(place, f"{problem} `launcher prepare imagenet`")
    if not images:
        raise DataError(place, "has no images; expected KEY.jpg and KEY.cls, or KEY.json, for each sample")
    if without := next((key for key in images if key not in labels), None):
        allowed = f"expected {without}.cls with a whole number, or {without}.json, in the same shard"
        raise DataError(f"{place}: {images[without].name}", f"is an image without a label; {allowed}")
    if without := next((key for key in labels if key not in images), None):
        name = f"{without}.{labels[without][0]}"
        raise DataError(f"{place}: {name}", "is a label without an image in the same shard; restore it or delete this")


def _members(place: str, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file. Raises DataError if it is compressed, damaged or cut short."""
    magic = file.read(6)
    for start, name in _COMPRESSED.items():
        if magic.startswith(start):
            problem = f"is compressed with {name}: its samples cannot be read one by one. Unpack it to a plain .tar;"
            raise DataError(place, f"{problem} images hardly get smaller")
    file.seek(0)
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closing it would do nothing
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it keeps them all: a kilobyte each
            if member.issparse():
                raise DataError(
                    f"{place}: {member.name}", "is a sparse file in the tar; pack it again without --sparse"
                )
            yield member
        end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(place, f"is not a tar file, or is cut short ({error}); copy it again") from error
    if not ends_as_tar(file, end):
        raise DataError(place, f"is cut short or damaged at byte {end:,}: no end marker of a tar; copy it again")


def _label(place: str, file: BinaryIO, member: tarfile.TarInfo, extension: str, key: str) -> int:
    """The label in a member. Raises DataError unless it is a whole number."""
    where, label = f"{place}: {member.name}", ""
    if member.size > _LABEL_BYTES:
        raise DataError(where, f"has {member.size:,} bytes; expected a label")
    file.seek(member.offset_data)
    content = file.read(member.size)
    if extension == "cls":
        if re.fullmatch(rb"\s*-?\d{1,9}\s*", content):
            return int(content)
        raise DataError(where, f"is not a whole number: {content[:50]!r}")
    try:
        found = json.loads(content)
    except ValueError as error:
        raise DataError(where, f"is not JSON ({error})") from error
    if not isinstance(found, dict) or key not in found:
        keys = ", ".join(map(str, found)) if isinstance(found, dict) else f"no object: {content[:50]!r}"
        raise DataError(where, f"has no {key}; it has {keys}. Set data.label_key to the key of the label")
    label = found[key]
    if type(label) is not int:
        raise DataError(where, f"{key} is not a whole number: {label!r}. Set data.label_key to the key of the label")
    return label
