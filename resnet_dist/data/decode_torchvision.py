"""Decoding on the CPU in threads: Pillow decodes, torchvision resizes, and both release Python's lock while they work.

torchvision's own JPEG decoder is deprecated since 0.29; Pillow gives the same pixels, and reads every other format too.
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

from resnet_dist.data.requests import Request
from resnet_dist.errors import DataError


@dataclass(frozen=True)
class TorchvisionDecoder:
    """A `Decoder` of `num_threads` threads that works `prefetch` requests ahead of its consumer."""

    num_threads: int
    prefetch: int

    def decode(self, requests: Iterator[Request], resolution: int) -> Generator[Tensor, None, None]:
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
    """A request on its way: each sample is a task of its own and fills its own slice of the batch."""

    def __init__(self, request: Request, resolution: int, pool: ThreadPoolExecutor) -> None:
        # Rows of pixels are copied with numpy, on one thread: torch would start a team of threads in each of ours.
        self._batch = np.empty((len(request), resolution, resolution, 3), dtype=np.uint8)
        self._tasks: list[Future[None]] = [
            pool.submit(decode_sample, request, number, self._batch[number]) for number in range(len(request))
        ]

    def result(self) -> Tensor:
        """Wait for the batch; the first broken sample's DataError if there is one."""
        for task in self._tasks:
            task.result()
        return torch.from_numpy(self._batch).permute(0, 3, 1, 2)


def decode_sample(request: Request, number: int, pixels: NDArray[np.uint8]) -> None:
    """Decode sample `number` of a request into `pixels`, uint8 [resolution, resolution, 3].

    DataError if the file cannot be read or decoded, or is smaller than its window.
    """
    path, sample_id = request.paths[number], int(request.sample_ids[number])
    try:
        window = _read_window(path, request.windows[number])
    # What Pillow raises for one broken format or another.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(path, f"cannot be decoded: {error}", sample_id) from error
    if window is None:
        raise DataError(
            path,
            f"is too small for its window (top, left, height, width) {tuple(request.windows[number].tolist())}: it has "
            "changed since it was indexed; delete the saved index to have it made again",
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
    """The window of the stored image as RGB, uint8 [height, width, 3]; None if it does not lie inside the image.

    EXIF orientation is not applied, transparency is dropped.
    """
    top, left, height, width = window.tolist()
    with Image.open(path) as image:
        if top + height > image.height or left + width > image.width:
            return None
        cut = image.crop((left, top, left + width, top + height))  # decodes
    return np.array(cut if cut.mode == "RGB" else cut.convert("RGB"))
