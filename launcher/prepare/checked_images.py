"""Checking all images of a data set: which are broken, which are odd, and which are the same."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from launcher.formatting import count
from launcher.prepare.in_order import in_order
from launcher.prepare.progress import Progress
from resnet_dist.data.decoding.pillow import open_image
from resnet_dist.data.headers.image import header_of
from resnet_dist.data.headers.jpeg_data import is_complete_jpeg
from resnet_dist.data.index.build import unread_index
from resnet_dist.data.index.columns import Texts
from resnet_dist.data.index.table import Index, Kind
from resnet_dist.data.sources.by_name import LISTINGS, identity
from resnet_dist.data.sources.known_bad import line_of
from resnet_dist.data.sources.listing import Split
from resnet_dist.data.sources.packed import packed_index
from resnet_dist.data.storage.files import Files, files_of
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.input_files import printable
from resnet_dist.recipe.schema import DataRecipe

SHOWN = 10  # images of each kind that are listed

_CHUNK = 32  # images that a thread takes at once
_LARGE, _SMALL = 25_000_000, 16  # pixels of an image; pixels of its shorter side

_UNREAD = 0  # in place of the hash of an image that cannot be read

_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg"), "JPEG"),
    **dict.fromkeys((".ppm", ".pgm"), "PPM"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".png": "PNG",
    ".bmp": "BMP",
    ".webp": "WEBP",
}


class Found:
    """What was found in the splits of a data set. Names are those of the index, relative to the root."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}  # what is wrong, by name
        self.odd: dict[str, list[str]] = {}  # names, by what is odd
        self._checked: list[tuple[Index, NDArray[np.uint64]]] = []  # with a hash of the bytes of each image

    def add(self, index: Index, images: Iterator[Checked]) -> None:
        """Add the images of a split, in its order."""
        hashes = np.zeros(len(index), np.uint64)
        for row, image in enumerate(images):
            hashes[row] = image.hashed
            if image.problem is not None:
                self.broken[index.paths[row]] = image.problem
            for oddity in image.oddities:
                self.odd.setdefault(oddity, []).append(index.paths[row])
        self._checked.append((index, hashes))

    def duplicates(self) -> list[list[Duplicate]]:
        """Groups of images with the same bytes (a hash of 64 bits)."""
        hashes = np.concatenate([hashes for _, hashes in self._checked])
        order = np.argsort(hashes, kind="stable")
        values, starts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
        several = (counts > 1) & (values != _UNREAD)
        found = [
            order[start : start + num].tolist() for start, num in zip(starts[several], counts[several], strict=True)
        ]
        return [[self._duplicate(number) for number in group] for group in sorted(found)]

    def _duplicate(self, number: int) -> Duplicate:
        """Image `number` of all splits together."""
        for split, (index, _) in enumerate(self._checked):
            if number < len(index):
                return Duplicate(index.paths[number], int(index.labels[number]), split)
            number -= len(index)
        raise IndexError(number)

    def report(self, shown: int | None) -> Iterator[str]:
        """What was found, line by line, with at most `shown` images of each kind (None: all)."""
        yield f"broken: {count(len(self.broken), 'image')}"
        yield from _first([f"{name}: {problem}" for name, problem in self.broken.items()], shown)
        for oddity, names in sorted(self.odd.items()):
            yield f"{oddity}: {count(len(names), 'image')}"
            yield from _first(names, shown)
        groups = self.duplicates()
        several = sum(len({image.label for image in group}) > 1 for group in groups)
        splits = sum(len({image.split for image in group}) > 1 for group in groups)
        yield (
            f"with the same bytes: {count(sum(map(len, groups)), 'image')} in {count(len(groups), 'group')}, "
            f"{several:,} of them in several classes, {splits:,} in both splits"
        )
        yield from _first([" = ".join(image.name for image in group) for group in groups], shown)


def _first(lines: Sequence[str], shown: int | None) -> Iterator[str]:
    yield from (f"  {printable(line)}" for line in lines[:shown])
    if shown is not None and len(lines) > shown:
        yield f"  and {len(lines) - shown:,} more; --all lists them"


class Duplicate(NamedTuple):
    """An image that has the bytes of another one."""

    name: str
    label: int
    split: int


class Checked(NamedTuple):
    """An image: a hash of its bytes, what is wrong with it, and what is odd."""

    hashed: int
    problem: str | None
    oddities: tuple[str, ...]


def check(data: DataRecipe, split: Split, threads: int, found: Found) -> Iterator[str]:
    """Read and decode all images of a split, and add what was found; yield what the split has, line by line.

    Raises the errors of the source: DataError for a root, folder or shard that cannot be read, StoreUnavailable.
    """
    index = _listed(data, split)
    yield f"{split}: {count(len(index), 'image')} in {count(len(index.classes), 'class')}"
    yield from (f"  {note}" for note in index.notes)
    files, progress = files_of(index, data), Progress(split, len(index), "images")

    def checked(first: int) -> list[Checked]:
        return [_checked(index, files, row) for row in range(first, min(first + _CHUNK, len(index)))]

    def all_checked() -> Iterator[Checked]:
        for first, part in in_order(range(0, len(index), _CHUNK), checked, threads):
            progress.update(first)
            yield from part

    try:
        found.add(index, all_checked())
    finally:
        progress.end()


def write_bad_list(file: Path, root: str, names: Sequence[str]) -> None:
    """Write a file for `data.known_bad`. Raises DataError if it cannot be written."""
    first = f"# broken images in {root!r}, found by `launcher prepare check`"
    text = "".join(f"{line}\n" for line in (first, *map(line_of, names)))
    try:
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DataError(str(file), f"cannot be written: {error.strerror or error}") from error


def _listed(data: DataRecipe, split: Split) -> Index:
    if data.source == "packed":
        return packed_index(data, split)
    if data.source not in LISTINGS:
        raise RecipeError("data.source", f"{data.source} cannot be checked", ", ".join(("packed", *LISTINGS)))
    index = unread_index(LISTINGS[data.source](data, split), data.root, identity(data))
    return dataclasses.replace(index, paths=Texts.of(index.paths))


def _checked(index: Index, files: Files, row: int) -> Checked:
    try:
        content = files.read(row)
    except DataError as error:
        return Checked(_UNREAD, error.problem, ())
    hashed = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    try:
        return Checked(hashed, None, tuple(_oddities(index.paths[row], content)))
    except DataError as error:
        return Checked(hashed, error.problem, ())


def _oddities(name: str, content: bytes) -> Iterator[str]:
    """What is odd about an image. Raises DataError if it is broken."""
    header = header_of(name, len(content), lambda num, offset: content[offset : offset + num])
    suffix = PurePosixPath(name).suffix.lower()
    try:
        with open_image(content) as image:
            kind = "JPEG" if image.format == "MPO" else image.format  # a JPEG with further ones behind it
            mode, transparent, animated = image.mode, image.has_transparency_data, False
            with contextlib.suppress(Exception):  # what is behind the first picture may be broken
                animated = getattr(image, "is_animated", False)
            image.convert("RGB")
    except Exception as error:  # Pillow's, which depend on the format
        raise DataError(name, f"cannot be decoded: {error}") from error
    if header.kind == Kind.ORDINARY and kind == "JPEG" and not is_complete_jpeg(content):
        yield "with unusual or incomplete data, though it can be decoded"
    if suffix in _FORMATS and kind != _FORMATS[suffix]:
        yield f"with the name of another format: {kind} named {suffix}"
    if mode == "CMYK":
        yield "CMYK, which becomes RGB without a colour profile"
    if transparent:
        yield "with transparent pixels, whose colours are used as if they were opaque"
    if header.orientation != 1:
        yield "with an EXIF orientation, which data.exif=apply applies"
    if animated:
        yield "with several pictures, of which the first is used"
    if header.height * header.width > _LARGE:
        yield f"very large: more than {_LARGE:,} pixels"
    if min(header.height, header.width) < _SMALL:
        yield f"very small: a side of less than {_SMALL} pixels"
