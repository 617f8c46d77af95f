"""The interface of decoders: the requests that they take, and the protocol that they implement."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.headers.jpeg_data import is_complete_jpeg
from resnet_dist.data.index.table import Index, Kind
from resnet_dist.data.storage.files import Files, header_in
from resnet_dist.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class BatchRequest:
    """The images of one micro-batch, at least one.

    positions     int64 [n], in the stream (training) or in the split (evaluation); decoders ignore them
    sample_ids    int64 [n], rows of the index
    windows       int32 [n, 4]: top, left, height, width in pixels of the image after its orientation
    flips         bool [n]: whether to flip left to right
    kinds         uint8 [n], see `resnet_dist.data.index.table.Kind`
    orientations  uint8 [n]: the EXIF orientation to apply; 1: none
    resolution    height and width of the decoded images
    files         reads the encoded images
    seen          uint8 [images of the index], changed by `encoded`: the kinds of images that were read: PILLOW also for
                  JPEGs that are damaged. Requests that share it look for that once per image. None: each time
    """

    positions: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    windows: NDArray[np.int32]
    flips: NDArray[np.bool_]
    kinds: NDArray[np.uint8]
    orientations: NDArray[np.uint8]
    resolution: int
    files: Files
    seen: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        num = len(self.sample_ids)
        columns = (self.positions, self.windows, self.flips, self.kinds, self.orientations)
        shapes = [column.shape for column in columns]
        if num == 0 or shapes != [(num,), (num, 4), (num,), (num,), (num,)]:
            raise ValueError(f"a request of {num} samples with positions, windows, flips, ... of {shapes}")

    @classmethod
    def of(
        cls,
        index: Index,
        files: Files,
        positions: NDArray[np.int64],
        sample_ids: NDArray[np.int64],
        windows: NDArray[np.int32],
        flips: NDArray[np.bool_],
        resolution: int,
    ) -> BatchRequest:
        """A request for rows `sample_ids` of `index`."""
        kinds, orientations = index.kinds[sample_ids], index.orientations[sample_ids]
        return cls(positions, sample_ids, windows, flips, kinds, orientations, resolution, files, index.seen)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def only(self, number: int) -> BatchRequest:
        """The request for sample `number` alone."""
        columns = ("positions", "sample_ids", "windows", "flips", "kinds", "orientations")
        row = slice(number, number + 1)
        return dataclasses.replace(self, **{name: getattr(self, name)[row] for name in columns})

    def name(self, number: int) -> str:
        """The name of sample `number` of the request, for a person."""
        return self.files.name(int(self.sample_ids[number]))

    def encoded(self, number: int) -> tuple[bytes, bool]:
        """The encoded image of sample `number`, and whether it is a JPEG that every decoder decodes to the same pixels.

        If not, `resnet_dist.data.decoding.cpu.pillow_window` decodes it under every decoder. Raises DataError if it
        cannot be read, is known to be broken, or if its header is refused.

        Windows of one column are left to Pillow: other decoders compute the colours of some of them in another way.
        """
        sample_id, kind = int(self.sample_ids[number]), int(self.kinds[number])
        if kind == Kind.BROKEN:
            raise DataError(self.files.name(sample_id), "is known to be broken", sample_id)
        content = self.files.read(sample_id)
        if kind != Kind.PILLOW:
            kind = self._seen(sample_id, kind, content)
        as_stored, width = self.orientations[number] == 1, self.windows[number, 3]
        return content, bool(kind == Kind.ORDINARY and as_stored and width > 1)

    def _seen(self, sample_id: int, kind: int, content: bytes) -> int:
        """ORDINARY or PILLOW, for an image that the index knows as `kind`: ORDINARY or UNKNOWN."""
        if self.seen is not None and self.seen[sample_id]:
            return int(self.seen[sample_id])
        if kind == Kind.UNKNOWN:
            kind = header_in(content, self.files.name(sample_id), sample_id).kind
        if kind == Kind.ORDINARY and not is_complete_jpeg(content):
            kind = Kind.PILLOW
        if self.seen is not None:
            self.seen[sample_id] = kind
        return kind


@dataclass(frozen=True, eq=False)
class Decoded:
    """A request with its images.

    images  uint8 [n, 3, resolution, resolution], RGB, in channels-last memory; zeros for samples with an error
    errors  of the samples that cannot be read or decoded, by their number in the request
    """

    request: BatchRequest
    images: Tensor
    errors: Mapping[int, DataError] = field(default_factory=dict)


class Decoder(Protocol):
    """Reads, decodes, crops, resizes and flips images, some requests ahead of its consumer."""

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        """Yield each request with its images, in order.

        The pixels of a sample depend only on its file, orientation, window, flip and resolution: not on the other
        samples, the number of threads or the number of requests ahead. Closing the generator early ends its threads.
        """
        ...
