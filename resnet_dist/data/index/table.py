"""The index: a table with the name, place, label and size of every sample.

It is created and checked once, then saved, so that restarts do not read all headers again. It contains heights and
widths because crops are computed before the images are opened.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index import columns
from resnet_dist.data.index.columns import Texts
from resnet_dist.errors import DataError

_FORMAT = 3  # of the saved file; formats 1 and 2, of version 0.1, were other files


class Kind(enum.IntEnum):
    """How an image file is decoded: the same under every decoder."""

    UNKNOWN = 0  # of an index from a user's function: found out when the image is read
    ORDINARY = 1  # every decoder gives the same pixels
    PILLOW = 2  # Pillow decodes it, since other decoders give other pixels or none
    BROKEN = 3  # known to be broken: it is not read, and has weight 0


@dataclass(frozen=True, eq=False)
class Index:
    """Samples in a fixed order; a sample's id is its row. Use `fingerprint` to compare two indices.

    root             folder or address that the paths are relative to
    classes          name of each label
    paths            name of each sample: its relative path, with forward slashes, or its name in a shard
    labels           int64 [n]
    heights, widths  int32 [n], pixels of the stored image (without EXIF orientation)
    folder_times_ns  modification times of the listed folders in nanoseconds by relative path; see `is_current`
    notes            what was left out, for a person
    source           `data.source` of a saved index; empty if it is unknown
    shards           relative paths of the files that hold the samples; empty if each sample is a file of its own
    shard_numbers    int32 [n], the shard of each sample; empty without shards
    offsets          int64 [n], its first byte there (parquet: its row); empty without shards
    num_bytes        int64 [n], encoded size, 0 if unknown (parquet)
    tails            uint32 [n], crc32 of the last 64 bytes of each image; empty if unknown
    times_ns         int64 [n], when the inode of each image's file changed, in nanoseconds, or a number made from the
                     version of each object; empty for shards
    kinds            uint8 [n], see `Kind`
    orientations     uint8 [n], EXIF orientation from 1 (as stored) to 8
    image_key        parquet: the column of the images; empty for other shards and for files
    problems         what is wrong with broken images, by row; their height and width are 1
    """

    root: str
    classes: tuple[str, ...]
    paths: Sequence[str]
    labels: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    folder_times_ns: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""
    shards: tuple[str, ...] = ()
    shard_numbers: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    num_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    tails: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    times_ns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    kinds: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    orientations: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    image_key: str = ""
    problems: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num = len(self.paths)
        lengths = {num, len(self.labels), len(self.heights), len(self.widths)}
        if len(lengths) != 1 or num == 0:
            raise ValueError(f"paths, labels, heights and widths need one length above 0, not {sorted(lengths)}")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(f"labels must be in 0..{len(self.classes) - 1}, one for each of the classes")
        for name, dtype in _COLUMNS.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        if len(self.kinds) == 0:
            object.__setattr__(self, "kinds", np.full(num, Kind.UNKNOWN, np.uint8))
        if len(self.orientations) == 0:
            object.__setattr__(self, "orientations", np.ones(num, np.uint8))
        optional = {name: len(getattr(self, name)) for name in _OPTIONAL}
        if wrong := {name: length for name, length in optional.items() if length not in (0, num)}:
            raise ValueError(f"{wrong} for {num} samples: these columns have one value per sample, or none")
        if self.shards and not optional["shard_numbers"] == optional["offsets"] == num:
            raise ValueError("samples in shards need shard_numbers and offsets")

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, sample_id: int) -> str:
        """The file of sample `sample_id`; of a sample in a shard, the shard and the name, for a person."""
        if not self.shards:
            return os.path.join(self.root, self.paths[sample_id])  # noqa: PTH118  Path objects are slow
        shard = self.shards[int(self.shard_numbers[sample_id])]
        return f"{self.root}/{shard}: {self.paths[sample_id]}"

    @cached_property
    def seen(self) -> NDArray[np.uint8]:
        """uint8 [n], the kinds of images that were read in this process; see `BatchRequest.seen`."""
        return np.full(len(self), Kind.UNKNOWN, np.uint8)

    def take(self, rows: NDArray[np.int64]) -> Index:
        """The samples `rows`, in that order."""
        taken: dict[str, Any] = {
            name: column[rows] for name in _COLUMNS if len(column := getattr(self, name)) == len(self)
        }
        if self.problems:
            numbers = np.flatnonzero(np.isin(rows, list(self.problems)))
            taken["problems"] = {number: self.problems[int(rows[number])] for number in numbers.tolist()}
        return dataclasses.replace(self, paths=Texts.of(self.paths).take(rows), **taken)

    def with_exif(self, exif: Literal["ignore", "apply"]) -> Index:
        """The index for `data.exif`: all orientations 1, or the sizes of the images after they are turned."""
        if exif == "ignore":
            return dataclasses.replace(self, orientations=np.ones(len(self), np.uint8))
        on_side = self.orientations >= 5  # turned by 90 degrees, one way or the other
        heights, widths = np.where(on_side, (self.widths, self.heights), (self.heights, self.widths))
        return dataclasses.replace(self, heights=heights, widths=widths)

    def fingerprint(self) -> str:
        """sha256 of the paths, labels and sizes: equal for equal data, independent of the root and of shards."""
        digest = hashlib.sha256(len(self).to_bytes(8, "little"))
        digest.update(Texts.of(self.paths).content[:-1].data)  # the names with a zero byte between them
        for column, dtype in ((self.labels, "<i8"), (self.heights, "<i4"), (self.widths, "<i4")):
            digest.update(column.astype(dtype).tobytes())
        return digest.hexdigest()

    def contents(self) -> str | None:
        """sha256 of the sizes in bytes and of the last 64 bytes of all files; None if they are unknown.

        It finds images that were exchanged, replaced or encoded anew. It misses a change that keeps a file's size and
        its last 64 bytes.
        """
        if not len(self.tails):
            return None
        return hashlib.sha256(self.num_bytes.astype("<i8").tobytes() + self.tails.astype("<u4").tobytes()).hexdigest()

    def digest(self) -> str:
        """sha256 of all that workers must agree about: what `fingerprint` has, and all columns, shards and times."""
        told = [self.root, self.classes, self.shards, self.image_key, sorted(self.folder_times_ns.items())]
        digest = hashlib.sha256(f"{self.fingerprint()} {json.dumps(told)}".encode())
        for name in _COLUMNS:
            digest.update(getattr(self, name).tobytes())
        return digest.hexdigest()

    def save(self, file: Path) -> None:
        """Write to `file` atomically; create its parents. Raises OSError."""
        names = Texts.of(self.paths)
        made: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _COLUMNS}
        made |= {"paths": names.content, "path_ends": names.ends}
        texts = {
            "root": self.root,
            "source": self.source,
            "classes": self.classes,
            "shards": self.shards,
            "notes": self.notes,
            "image_key": self.image_key,
            "folders": list(self.folder_times_ns.items()),
            "problems": list(self.problems.items()),
        }
        columns.write(file, made, {"format": str(_FORMAT), **{key: json.dumps(text) for key, text in texts.items()}})

    @classmethod
    def load(cls, file: Path) -> Index:
        """Memory-map a saved index. Raises DataError if the file is missing, damaged or of another format."""
        try:
            found, metadata = columns.read(file)
            if metadata.get("format") != str(_FORMAT):
                raise DataError(str(file), f"is an index of format {metadata.get('format')}, not {_FORMAT}; delete it")
            names = ("root", "source", "classes", "shards", "notes", "image_key")
            texts = {name: json.loads(metadata[name]) for name in names}
            return cls(
                root=texts["root"],
                classes=tuple(texts["classes"]),
                paths=Texts(found["paths"], found["path_ends"]),
                folder_times_ns={str(name): int(time_ns) for name, time_ns in json.loads(metadata["folders"])},
                notes=tuple(texts["notes"]),
                source=texts["source"],
                shards=tuple(texts["shards"]),
                image_key=texts["image_key"],
                problems={int(row): str(text) for row, text in json.loads(metadata["problems"])},
                **{name: found[name] for name in _COLUMNS},
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(str(file), f"is not a saved index ({error}); delete it, and it is created again") from error


_OPTIONAL = ("shard_numbers", "offsets", "num_bytes", "tails", "times_ns")  # empty, or with a value per sample
_COLUMNS = {
    "labels": np.int64,
    "heights": np.int32,
    "widths": np.int32,
    "shard_numbers": np.int32,
    "offsets": np.int64,
    "num_bytes": np.int64,
    "tails": np.uint32,
    "times_ns": np.int64,
    "kinds": np.uint8,
    "orientations": np.uint8,
}


def check_labels(index: Index, num_classes: int) -> None:
    """Raise DataError if a label is outside the `num_classes` outputs of the model."""
    outside = np.flatnonzero(index.labels >= num_classes)
    if outside.size:
        first = int(outside[0])
        raise DataError(
            index.root,
            f"{outside.size:,} of {len(index):,} images have labels of {num_classes} or more, for example "
            f"{index.paths[first]} with {index.labels[first]}; {_too_few(len(index.classes), num_classes)}",
        )


def compare_classes(root: str, classes: Sequence[str], num_classes: int) -> list[str]:
    """A warning if the model predicts more classes than the data has. Raises DataError if it predicts fewer."""
    if len(classes) > num_classes:
        raise DataError(root, f"has {len(classes)} classes; {_too_few(len(classes), num_classes)}")
    if len(classes) == num_classes:
        return []
    return [
        f"{root}: has {len(classes)} classes and the model predicts {num_classes} (model.num_classes): no image "
        "trains the other outputs"
    ]


def _too_few(in_data: int, in_model: int) -> str:
    return f"the model predicts {in_model} classes. Set model.num_classes to {in_data} or check data.root"


def check_same_classes(root: str, train: Sequence[str], val: Sequence[str], *, subset: bool = False) -> None:
    """Raise DataError, with the differences, unless both splits have the same classes in the same order.

    A class that is missing in one split would shift the labels of all classes after it. `subset`: val may have fewer
    classes, since its labels are those of train.
    """
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if tuple(train) == tuple(val) or (subset and not only_val):
        return
    differences = [
        f"only in {split}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''} ({len(names)})"
        for split, names in (("train", only_train), ("val", only_val))
        if names
    ]
    what = "; ".join(differences) or "the same names in another order"
    allowed = "the classes of train, or some of them, in val" if subset else "the same classes in both"
    raise DataError(root, f"train has {len(train)} classes and val has {len(val)}: {what}. Allowed: {allowed}")
