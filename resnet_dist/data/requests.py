"""What a decoder is asked for, and what every decoder promises."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data.index import Index


@dataclass(frozen=True, eq=False)
class Request:
    """One micro-batch's worth of images, at least one.

    sample_ids  int64 [n], rows of the index
    paths       [n], where each image is stored
    windows     int32 [n, 4]: top, left, height, width in pixels of the stored image
    flips       bool [n]: mirror left to right
    """

    sample_ids: NDArray[np.int64]
    paths: list[str]
    windows: NDArray[np.int32]
    flips: NDArray[np.bool_]

    def __post_init__(self) -> None:
        num = len(self.sample_ids)
        shapes = (len(self.paths), self.windows.shape, self.flips.shape)
        if num == 0 or shapes != (num, (num, 4), (num,)):
            raise ValueError(f"a request of {num} samples with paths, windows, flips of {shapes}")

    @classmethod
    def of(
        cls, index: Index, sample_ids: NDArray[np.int64], windows: NDArray[np.int32], flips: NDArray[np.bool_]
    ) -> Request:
        """A request for rows `sample_ids` of `index`."""
        return cls(sample_ids, [index.path(sample_id) for sample_id in sample_ids.tolist()], windows, flips)

    def __len__(self) -> int:
        return len(self.paths)


class Decoder(Protocol):
    """Reads, decodes, cuts, resizes and flips images, some requests ahead of its consumer."""

    def decode(self, requests: Iterator[Request], resolution: int) -> Generator[Tensor, None, None]:
        """One tensor a request, in order: uint8 [n, 3, resolution, resolution], RGB, in channels-last memory.

        What comes out for a sample depends on its file, window and flip alone: not on its neighbours, the number of
        threads or how far is read ahead. Closing the generator early ends all its threads.
        DataError names the path and the sample of an image that cannot be decoded.
        """
        ...
