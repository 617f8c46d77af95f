"""What a source lists before any image is read: the names, labels and places of the samples of a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.names import shown

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
Tell = Callable[[str], object]  # called with how far a listing is, such as "12 of 147 shards"

# torchvision.datasets.folder.IMG_EXTENSIONS
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class Listing:
    """The samples of one split in the order of the index; see `Index` for the attributes."""

    classes: tuple[str, ...]
    paths: Sequence[str]
    labels: Sequence[int] | NDArray[np.int64]
    folder_times_ns: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    shard_numbers: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    num_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    times_ns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    image_key: str = ""


class LeftOut:
    """What a listing leaves out: how many, and the first in sorted order, for each reason."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, path: str) -> None:
        """Count a file or folder."""
        num, first = self._found.get(reason, (0, path))
        self._found[reason] = (num + 1, min(first, path))

    def notes(self, root: str, folder: str = "") -> list[str]:
        """A note for each reason; the example is relative to `folder` of the root, if that is given."""
        place, above = (f"{root}/{folder}", f"{folder}/") if folder else (root, "")
        return [
            f"{place}: left out {reason}: {num:,}, for example {shown(first.removeprefix(above))}"
            for reason, (num, first) in sorted(self._found.items())
        ]
