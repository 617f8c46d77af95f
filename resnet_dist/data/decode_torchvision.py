"""Decoding on the CPU in threads: Pillow decodes and torchvision resizes; both release the GIL.

torchvision's own JPEG decoder is deprecated since 0.29. Pillow gives the same pixels and reads the other formats too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from resnet_dist.data.requests import BatchRequest
from resnet_dist.errors import DataError


@dataclass(frozen=True)
class TorchvisionDecoder:
    """A `Decoder` of `num_threads` threads that works `prefetch` requests ahead of its consumer."""

    num_threads: int
    prefetch: int

    def decode(
        self, requests: Iterator[BatchRequest], resolution: int
    ) -> Generator[tuple[BatchRequest, Tensor], None, None]:
        """See `Decoder.decode`; tensors are on the CPU."""
        ahead: deque[_Decoding] = deque()
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode")
        try:
            for request in requests:
                ahead.append(_Decoding(request, resolution, pool))
                if len(ahead) > self.prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Decoding:
    """A request that is being decoded: one task per sample, which fills its slice of the batch."""

    def __init__(self, request: BatchRequest, resolution: int, pool: ThreadPoolExecutor) -> None:
        self._request = request
        # Rows of pixels are copied with numpy: torch would start a pool of threads in each of these threads.
        self._batch = np.empty((len(request), resolution, resolution, 3), dtype=np.uint8)
        self._tasks: list[Future[None]] = [
            pool.submit(decode_sample, request, number, self._batch[number]) for number in range(len(request))
        ]

    def result(self) -> tuple[BatchRequest, Tensor]:
        """Wait for the batch. Raises the DataError of the first sample that cannot be decoded."""
        for task in self._tasks:
            task.result()
        return self._request, torch.from_numpy(self._batch).permute(0, 3, 1, 2)


def decode_sample(request: BatchRequest, number: int, pixels: NDArray[np.uint8]) -> None:
    """Decode sample `number` of a request into `pixels`, uint8 [resolution, resolution, 3].

    DataError if the file cannot be read or decoded, or is smaller than its window.
    """
    path, sample_id = request.paths[number], int(request.sample_ids[number])
    try:
        window = _read_window(path, request.windows[number])
    # Pillow's errors for broken files, which depend on the format.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(path, f"cannot be decoded: {error}", sample_id) from error
    if window is None:
        raise DataError(
            path,
            f"is too small for its window (top, left, height, width) {tuple(request.windows[number].tolist())}: it has "
            "changed since it was indexed. Delete the saved index, and it is created again",
            sample_id,
        )
    resized = resize(
        torch.from_numpy(window).permute(2, 0, 1),
        list(pixels.shape[:2]),
        interpolation=InterpolationMode.BILINEAR,
        antialias=True,
    )
    rows = resized.permute(1, 2, 0).numpy()
    pixels[:] = rows[:, ::-1] if request.flips[number] else rows


def _read_window(path: str, window: NDArray[np.int32]) -> NDArray[np.uint8] | None:
    """The window of the stored image as RGB, uint8 [height, width, 3]; None if the window exceeds the image.

    EXIF orientation is ignored, transparency is dropped.
    """
    top, left, height, width = window.tolist()
    with Image.open(path) as image:
        if top + height > image.height or left + width > image.width:
            return None
        cut = image.crop((left, top, left + width, top + height))  # decodes
    return np.array(cut if cut.mode == "RGB" else cut.convert("RGB"))
