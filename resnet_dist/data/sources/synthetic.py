"""`data.source: synthetic`: random images that are made on the device, to measure a run without its input.

Image and label of a sample depend on its id alone, so the course of a run does not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnet_dist.data.decoding.requests import BatchRequest, Decoded
from resnet_dist.data.index.table import Index, Kind
from resnet_dist.data.random_bits import Purpose, states
from resnet_dist.recipe.schema import DataRecipe

_NUM_IMAGES = 64  # different images; sample i has number i modulo this
_HEIGHT, _WIDTH = 375, 500  # that the index records: windows are computed as for photos
_TRAIN_PER_VAL = 25  # as ImageNet has


def synthetic_indices(data: DataRecipe, num_classes: int) -> tuple[Index, Index]:
    """The training and val splits: `data.num_samples` samples, and a 25th as many. Labels are hashes of the id."""
    num = data.num_samples or 1  # the rules require it
    return _index(num, num_classes), _index(max(1, num // _TRAIN_PER_VAL), num_classes)


def _index(num: int, num_classes: int) -> Index:
    words = states(0, np.arange(num, dtype=np.int64), Purpose.SYNTHETIC)
    return Index(
        root="synthetic",
        classes=tuple(f"class {label}" for label in range(num_classes)),
        paths=_Names(num),
        labels=(words % np.uint64(num_classes)).astype(np.int64),
        heights=np.full(num, _HEIGHT, np.int32),
        widths=np.full(num, _WIDTH, np.int32),
        source="synthetic",
        kinds=np.full(num, Kind.ORDINARY, np.uint8),
    )


class _Names(Sequence[str]):
    """The names of the samples, made when they are asked for."""

    def __init__(self, num: int) -> None:
        self._numbers = range(num)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: Any) -> Any:
        found = self._numbers[number]
        return list(map(str, found)) if isinstance(found, range) else str(found)


@dataclass(frozen=True)
class SyntheticDecoder:
    """A `Decoder` that reads nothing: it takes images from a few that it keeps on the device.

    Windows, flips and orientations do not change them.
    """

    device: torch.device

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        """See `Decoder.decode`; tensors are on the device."""
        images = torch.empty(0)
        for request in requests:
            if len(images) == 0 or images.shape[1] != request.resolution:
                images = _images(request.resolution).to(self.device)
            numbers = torch.from_numpy(request.sample_ids % _NUM_IMAGES)
            if self.device.type == "cuda":
                numbers = numbers.pin_memory().to(self.device, non_blocking=True)
            yield Decoded(request, images.index_select(0, numbers).permute(0, 3, 1, 2))


def _images(resolution: int) -> Tensor:
    """Random pixels, uint8 [images, resolution, resolution, 3]: the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (_NUM_IMAGES, resolution, resolution, 3), dtype=torch.uint8, generator=generator)
