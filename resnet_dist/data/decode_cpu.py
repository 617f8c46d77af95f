"""Decoding on the CPU in threads: Pillow decodes and torchvision resizes; both release the GIL.

torchvision's own JPEG decoder is deprecated since 0.29. Pillow gives the same pixels and reads the other formats too.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from resnet_dist.data.requests import BatchRequest, Decoded
from resnet_dist.errors import DataError


@dataclass(frozen=True)
class CpuDecoder:
    """A `Decoder` of `num_threads` threads that works `prefetch` requests ahead of its consumer."""

    num_threads: int
    prefetch: int

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        """See `Decoder.decode`; tensors are on the CPU."""
        ahead: deque[_Decoding] = deque()
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode")
        try:
            for request in requests:
                ahead.append(_Decoding(request, pool))
                if len(ahead) > self.prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Decoding:
    """A request that is being decoded: one task per sample, which fills its slice of the batch."""

    def __init__(self, request: BatchRequest, pool: ThreadPoolExecutor) -> None:
        self._request, resolution = request, request.resolution
        # Rows of pixels are copied with numpy: torch would start a pool of threads in each of these threads.
        self._batch = np.zeros((len(request), resolution, resolution, 3), dtype=np.uint8)
        self._tasks: list[Future[None]] = [
            pool.submit(decode_sample, request, number, self._batch[number]) for number in range(len(request))
        ]

    def result(self) -> Decoded:
        """Wait for the batch."""
        errors: dict[int, DataError] = {}
        for number, task in enumerate(self._tasks):
            try:
                task.result()
            except DataError as error:
                errors[number] = error
        return Decoded(self._request, torch.from_numpy(self._batch).permute(0, 3, 1, 2), errors)


def decode_sample(request: BatchRequest, number: int, pixels: NDArray[np.uint8]) -> None:
    """Decode sample `number` of a request into `pixels`, uint8 [resolution, resolution, 3].

    Raises DataError if the image cannot be read or decoded, or is smaller than its window.
    """
    resized = resize(
        torch.from_numpy(decode_window(request, number)).permute(2, 0, 1),
        list(pixels.shape[:2]),
        interpolation=InterpolationMode.BILINEAR,
        antialias=True,
    )
    rows = resized.permute(1, 2, 0).numpy()
    pixels[:] = rows[:, ::-1] if request.flips[number] else rows


def decode_window(request: BatchRequest, number: int) -> NDArray[np.uint8]:
    """The window of sample `number` as RGB, uint8 [height, width, 3], not flipped. Transparency is dropped.

    Raises DataError if the image cannot be read or decoded, or is smaller than its window.
    """
    content, sample_id = request.read(number), int(request.sample_ids[number])
    top, left, height, width = request.windows[number].tolist()
    transpose = _TRANSPOSES.get(int(request.orientations[number]))
    try:
        with Image.open(io.BytesIO(content)) as stored:
            image = stored if transpose is None else stored.transpose(transpose)
            if top + height <= image.height and left + width <= image.width:
                cut = image.crop((left, top, left + width, top + height))  # decodes
                return np.array(cut if cut.mode == "RGB" else cut.convert("RGB"))
    # Pillow's errors for broken files, which depend on the format.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
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
