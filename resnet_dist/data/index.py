"""The index: a table with the path, label and size of every sample.

It is created and checked once, then saved, so that restarts do not read all headers again. It contains heights and
widths because crops are computed before the images are opened.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from resnet_dist import input_files
from resnet_dist.errors import DataError

_FORMAT = 2  # of the saved file; format 1, of version 0.1, has no source and no notes


@dataclass(frozen=True, eq=False)
class Index:
    """Samples in a fixed order; a sample's id is its row. Use `fingerprint` to compare two indices.

    root             folder that the paths are relative to
    classes          name of each label
    paths            relative path of each sample, with forward slashes
    labels           int64 [n]
    heights, widths  int32 [n], pixels of the stored image (without EXIF orientation)
    folder_times_ns  modification times of the listed folders in nanoseconds by relative path; see `is_current`
    notes            what was left out, for a person
    source           `data.source` of a saved index; empty if it is unknown
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

    def __post_init__(self) -> None:
        lengths = {len(self.paths), len(self.labels), len(self.heights), len(self.widths)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"paths, labels, heights and widths need one length above 0, not {sorted(lengths)}")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(f"labels must be in 0..{len(self.classes) - 1}, one for each of the classes")
        for name, dtype in (("labels", np.int64), ("heights", np.int32), ("widths", np.int32)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, sample_id: int) -> str:
        """The file of sample `sample_id`."""
        return os.path.join(self.root, self.paths[sample_id])  # noqa: PTH118  Path objects are slow

    def fingerprint(self) -> str:
        """sha256 of the paths, labels and sizes: equal for equal data, independent of the root."""
        digest = hashlib.sha256(len(self).to_bytes(8, "little"))
        digest.update(_packed(self.paths))
        for column, dtype in ((self.labels, "<i8"), (self.heights, "<i4"), (self.widths, "<i4")):
            digest.update(column.astype(dtype).tobytes())
        return digest.hexdigest()

    def save(self, file: Path) -> None:
        """Write to `file` atomically; create its parents. Raises OSError."""
        columns: dict[str, NDArray[np.generic]] = {
            "format": np.array(_FORMAT),
            "root": _text([self.root]),
            "classes": _text(self.classes),
            "paths": _text(self.paths),
            "labels": self.labels,
            "heights": self.heights,
            "widths": self.widths,
            "folders": _text(list(self.folder_times_ns)),
            "times_ns": np.array(list(self.folder_times_ns.values()), dtype=np.int64),
            "notes": _text(self.notes),
            "source": _text([self.source]),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may save the same index at once: each writes a temporary file, the last rename wins.
        temporary = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as stream:
                np.savez(stream, **columns)  # type: ignore[arg-type]
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, file: Path) -> Index:
        """Read a saved index. Raises DataError if the file is missing, damaged or of another format."""
        try:
            with input_files.open_regular(file) as stream, np.load(stream, allow_pickle=False) as columns:
                if int(columns["format"]) not in (1, _FORMAT):
                    raise DataError(str(file), f"is an index of format {columns['format']}, not {_FORMAT}; delete it")
                return cls(
                    root=_lines(columns["root"])[0],
                    classes=tuple(_lines(columns["classes"])),
                    paths=tuple(_lines(columns["paths"])),
                    labels=columns["labels"],
                    heights=columns["heights"],
                    widths=columns["widths"],
                    folder_times_ns=dict(zip(_lines(columns["folders"]), columns["times_ns"].tolist(), strict=True)),
                    notes=tuple(_lines(columns["notes"])) if "notes" in columns else (),
                    source="".join(_lines(columns["source"])) if "source" in columns else "",
                )
        except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(str(file), f"is not a saved index ({error}); delete it, and it is created again") from error


def is_current(index: Index) -> bool:
    """Whether the folders of an index have the same modification times as when it was created.

    Files are not checked: overwriting one in place is not detected here, but decoding compares it with the recorded
    size. An index without folder times (from a user's source) is never current.
    """
    if not index.folder_times_ns:
        return False
    root = Path(index.root)
    try:
        return all((root / name).stat().st_mtime_ns == time_ns for name, time_ns in index.folder_times_ns.items())
    except OSError:
        return False


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


def _packed(lines: Sequence[str]) -> bytes:
    """Lines as bytes, also file names that are not valid UTF-8. No file name contains a zero byte."""
    return "\0".join(lines).encode("utf-8", "surrogateescape")


def _text(lines: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer(_packed(lines), dtype=np.uint8)


def _lines(text: NDArray[np.uint8]) -> list[str]:
    return text.tobytes().decode("utf-8", "surrogateescape").split("\0") if text.size else []
