"""The interface of decoders: the requests that they take, and the protocol that they implement."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index import Index

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class BatchRequest:
    """The images of one micro-batch, at least one.

    positions   int64 [n], in the stream (training) or in the split (evaluation); decoders ignore them
    sample_ids  int64 [n], rows of the index
    paths       [n], files of the images
    windows     int32 [n, 4]: top, left, height, width in pixels of the stored image
    flips       bool [n]: whether to flip left to right
    """

    positions: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    paths: list[str]
    windows: NDArray[np.int32]
    flips: NDArray[np.bool_]

    def __post_init__(self) -> None:
        num = len(self.sample_ids)
        shapes = (len(self.positions), len(self.paths), self.windows.shape, self.flips.shape)
        if num == 0 or shapes != (num, num, (num, 4), (num,)):
            raise ValueError(f"a request of {num} samples with positions, paths, windows, flips of {shapes}")

    @classmethod
    def of(
        cls,
        index: Index,
        positions: NDArray[np.int64],
        sample_ids: NDArray[np.int64],
        windows: NDArray[np.int32],
        flips: NDArray[np.bool_],
    ) -> BatchRequest:
        """A request for rows `sample_ids` of `index`."""
        paths = [index.path(sample_id) for sample_id in sample_ids.tolist()]
        return cls(positions, sample_ids, paths, windows, flips)

    def __len__(self) -> int:
        return len(self.paths)


class Decoder(Protocol):
    """Reads, decodes, crops, resizes and flips images, some requests ahead of its consumer."""

    def decode(
        self, requests: Iterator[BatchRequest], resolution: int
    ) -> Generator[tuple[BatchRequest, Tensor], None, None]:
        """Yield each request with its images: uint8 [n, 3, resolution, resolution], RGB, in channels-last memory.

        The pixels of a sample depend only on its file, window and flip: not on the other samples, the number of threads
        or the number of requests ahead. Closing the generator early ends its threads. Raises DataError with the path
        and the sample of an image that cannot be decoded.
        """
        ...
