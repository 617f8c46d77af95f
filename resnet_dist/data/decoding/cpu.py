"""Decoding on the CPU in threads: nvImageCodec or Pillow decodes and torch resizes; all of them release the GIL.

Ordinary, complete JPEGs without an orientation are decoded by nvImageCodec where it is installed; all other images,
windows of one column, and whatever it refuses, by Pillow. The pixels are the same bit for bit, also those of images
that are damaged inside, as far as that was checked (docs/data.md, Decoders).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnet_dist.data.decoding.pillow import open_image
from resnet_dist.data.decoding.regions import RegionDecoder
from resnet_dist.data.decoding.requests import BatchRequest, Decoded
from resnet_dist.data.decoding.threads import single_threads
from resnet_dist.errors import DataError

_LARGEST_PART = 8  # samples that a thread takes at once

# As torch.nn.functional.interpolate(mode="bilinear", antialias=True), which cannot write into the batch.
_resize: Any = torch._C._nn._upsample_bilinear2d_aa  # its type stub lacks `out`


@dataclass(frozen=True)
class CpuDecoder:
    """A `Decoder` of `num_threads` threads that works `prefetch` requests ahead of its consumer.

    `regions`: decode ordinary JPEGs with nvImageCodec, which must be installed. `pinned`: decode into pinned memory,
    from which a GPU copies while the host goes on. torch keeps freed pinned memory, and gives it out again only after
    the copies from it have ended, so the memory of a few batches is pinned once and used in turn.
    """

    num_threads: int
    prefetch: int
    regions: bool = False
    pinned: bool = False

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        """See `Decoder.decode`; tensors are on the CPU."""
        ahead: deque[_Decoding] = deque()
        windows = _Windows(self.regions)
        pool = single_threads(self.num_threads, "decode")
        try:
            for request in requests:
                ahead.append(_Decoding(request, windows, pool, self.num_threads, self.pinned))
                if len(ahead) > self.prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Decoding:
    """A request that is being decoded in parts, each of which fills its slice of the batch."""

    def __init__(
        self, request: BatchRequest, windows: _Windows, pool: ThreadPoolExecutor, num_threads: int, pinned: bool
    ) -> None:
        num = len(request)
        self._request = request
        # by a thread of the pool, since to pin memory takes long; it is submitted before the parts that wait for it
        self._images = pool.submit(_memory, num, request.resolution, pinned)
        part = min(_LARGEST_PART, -(-num // num_threads))
        self._parts: list[Future[dict[int, DataError]]] = [
            pool.submit(_decode, request, range(first, min(first + part, num)), windows, self._images)
            for first in range(0, num, part)
        ]

    def result(self) -> Decoded:
        """Wait for the batch."""
        errors: dict[int, DataError] = {}
        for part in self._parts:
            errors |= part.result()
        return Decoded(self._request, self._images.result(), errors)


def _memory(num: int, resolution: int, pinned: bool) -> Tensor:
    """Uninitialised memory for `num` images: uint8 [num, 3, resolution, resolution], channels-last."""
    images = torch.empty((num, resolution, resolution, 3), dtype=torch.uint8, pin_memory=pinned)
    return images.permute(0, 3, 1, 2)


def _decode(request: BatchRequest, numbers: range, windows: _Windows, memory: Future[Tensor]) -> dict[int, DataError]:
    """Decode samples `numbers` of a request into their rows of `memory`; returns the errors by number."""
    images = memory.result()
    errors: dict[int, DataError] = {}
    size = [request.resolution] * 2
    for number in numbers:
        row = images[number : number + 1]
        try:
            window = torch.from_numpy(windows.of(request, number))[None].permute(0, 3, 1, 2)
        except DataError as error:
            errors[number] = error
            row.zero_()
            continue
        if request.flips[number]:  # flipped after resizing, which does not treat left and right alike
            row.copy_(_resize(window, size, False).flip(3))
        else:
            _resize(window, size, False, out=row)
    return errors


class _Windows(threading.local):
    """Decodes windows. Each thread has an nvImageCodec decoder of its own, if `regions`."""

    def __init__(self, regions: bool) -> None:
        self._regions = RegionDecoder() if regions else None

    def of(self, request: BatchRequest, number: int) -> NDArray[np.uint8]:
        """As `pillow_window`; the pixels are valid up to the next call in this thread."""
        content, ordinary = request.encoded(number)
        if ordinary and self._regions is not None:
            top, left, height, width = request.windows[number].tolist()
            pixels = self._regions.decode(content, (top, left, height, width))
            if pixels is not None:
                return pixels
        return pillow_window(request, number, content)


def pillow_window(request: BatchRequest, number: int, content: bytes) -> NDArray[np.uint8]:
    """The window of sample `number`, whose file is `content`, as RGB, uint8 [height, width, 3], not flipped.

    Transparency is dropped. Raises DataError if the image cannot be decoded or is smaller than its window.
    """
    sample_id = int(request.sample_ids[number])
    top, left, height, width = request.windows[number].tolist()
    transpose = _TRANSPOSES.get(int(request.orientations[number]))
    try:
        with open_image(content) as stored:
            image = stored if transpose is None else stored.transpose(transpose)
            if top + height <= image.height and left + width <= image.width:
                cut = image.crop((left, top, left + width, top + height))  # decodes
                return np.array(cut if cut.mode == "RGB" else cut.convert("RGB"))
    except MemoryError as error:  # says nothing about the image
        raise MemoryError(f"while decoding {request.name(number)}") from error
    except Exception as error:  # which one depends on the format
        raise DataError(request.name(number), f"cannot be decoded: {error}", sample_id) from error
    raise DataError(
        request.name(number),
        f"is too small for its window (top, left, height, width) {(top, left, height, width)}: it has "
        "changed since it was indexed. Delete the saved index, and it is created again",
        sample_id,
    )


# By EXIF orientation, as in PIL.ImageOps.exif_transpose.
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
