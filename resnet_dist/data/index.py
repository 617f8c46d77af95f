"""The table of samples: where each image lies, what it shows, how large it is.

It is made once, checked while it is made, and saved, so that thousands of restarts need not read a million headers.
Heights and widths are part of it because a window of an image must be known before the image is opened.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from resnet_dist.errors import DataError

_FORMAT = 1  # of the saved file


@dataclass(frozen=True, eq=False)
class Index:
    """Samples in a fixed order; a sample's id is its row. Compare two with `fingerprint`.

    root             folder that the paths are relative to
    classes          name of each label
    paths            relative path of each sample, with forward slashes
    labels           int64 [n]
    heights, widths  int32 [n], pixels, as stored (EXIF orientation is not applied)
    folder_times_ns  modification time of each folder that was listed, relative path to nanoseconds; see `is_current`
    """

    root: str
    classes: tuple[str, ...]
    paths: Sequence[str]
    labels: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    folder_times_ns: Mapping[str, int] = field(default_factory=dict)

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
        """Where sample `sample_id` is stored."""
        return os.path.join(self.root, self.paths[sample_id])  # noqa: PTH118  a Path object a sample is slow

    def fingerprint(self) -> str:
        """sha256 of the paths, labels and sizes: equal for equal data, wherever its root lies."""
        digest = hashlib.sha256(len(self).to_bytes(8, "little"))
        digest.update(_packed(self.paths))
        for column, dtype in ((self.labels, "<i8"), (self.heights, "<i4"), (self.widths, "<i4")):
            digest.update(column.astype(dtype).tobytes())
        return digest.hexdigest()

    def save(self, file: Path) -> None:
        """Write to `file`, which is complete or absent at every moment. Parents are created. OSError as it comes."""
        columns: dict[str, Any] = {
            "format": np.array(_FORMAT),
            "root": _text([self.root]),
            "classes": _text(self.classes),
            "paths": _text(self.paths),
            "labels": self.labels,
            "heights": self.heights,
            "widths": self.widths,
            "folders": _text(list(self.folder_times_ns)),
            "times_ns": np.array(list(self.folder_times_ns.values()), dtype=np.int64),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        # Several workers may save the same index at once: each writes a file of its own, the last rename wins.
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                np.savez(stream, **columns)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, file: Path) -> Index:
        """Read what `save` wrote. DataError if the file is missing, torn, or of another format."""
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as columns:
                if int(columns["format"]) != _FORMAT:
                    raise DataError(str(file), f"is an index of format {columns['format']}, not {_FORMAT}; delete it")
                return cls(
                    root=_lines(columns["root"])[0],
                    classes=tuple(_lines(columns["classes"])),
                    paths=tuple(_lines(columns["paths"])),
                    labels=columns["labels"],
                    heights=columns["heights"],
                    widths=columns["widths"],
                    folder_times_ns=dict(zip(_lines(columns["folders"]), columns["times_ns"].tolist(), strict=True)),
                )
        except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(str(file), f"is not a saved index ({error}); delete it to have it made again") from error


def is_current(index: Index) -> bool:
    """Whether the folders behind an index are as they were when it was made: the same files, by modification times.

    One look at each folder, none at the files. A file overwritten in place is not noticed here; decoding it is checked
    against the recorded size. An index without recorded folders (a user's source) is never current.
    """
    if not index.folder_times_ns:
        return False
    root = Path(index.root)
    try:
        return all((root / name).stat().st_mtime_ns == time_ns for name, time_ns in index.folder_times_ns.items())
    except OSError:
        return False


def check_labels(index: Index, num_classes: int) -> None:
    """DataError if the index has a label that a model of `num_classes` cannot predict."""
    highest = int(index.labels.max())
    if highest >= num_classes:
        raise DataError(
            index.root,
            f"has {len(index.classes)} classes (labels up to {highest}), but the model predicts {num_classes}; "
            f"set model.num_classes to {len(index.classes)} or check data.root",
        )


def check_same_classes(root: str, train: Sequence[str], val: Sequence[str]) -> None:
    """DataError if the two splits do not have the same classes in the same order, naming those that only one has.

    A class missing on one side would shift every label after it, and evaluation would compare apples with pears.
    """
    if tuple(train) == tuple(val):
        return
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    differences = [
        f"only in {split}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''} ({len(names)})"
        for split, names in (("train", only_train), ("val", only_val))
        if names
    ]
    what = "; ".join(differences) or "the same names in another order"
    raise DataError(root, f"train has {len(train)} classes and val has {len(val)}: {what}. They must be the same")


def _packed(lines: Sequence[str]) -> bytes:
    """Lines as bytes; file names that are not valid UTF-8 survive. No file name holds a zero byte."""
    return "\0".join(lines).encode("utf-8", "surrogateescape")


def _text(lines: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer(_packed(lines), dtype=np.uint8)


def _lines(text: NDArray[np.uint8]) -> list[str]:
    return text.tobytes().decode("utf-8", "surrogateescape").split("\0") if text.size else []
