"""Decoding on the CPU with torchvision and Pillow, in threads: both release Python's lock while they work."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from resnet_dist.data.image_headers import JPEG_MAGIC
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
        image = _read_rgb(path)
    # Pillow raises each of these for one broken format or another; torchvision raises RuntimeError.
    except (OSError, RuntimeError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(path, f"cannot be decoded: {_reason(error)}", sample_id) from error
    top, left, height, width = request.windows[number].tolist()
    if top + height > image.shape[0] or left + width > image.shape[1]:
        raise DataError(
            path,
            f"has {image.shape[0]} x {image.shape[1]} pixels, too few for the window at ({top}, {left}) of "
            f"{height} x {width}: it has changed since it was indexed; delete the saved index to have it made again",
            sample_id,
        )
    window = np.ascontiguousarray(image[top : top + height, left : left + width])
    resized = resize(
        torch.from_numpy(window).permute(2, 0, 1),
        list(pixels.shape[:2]),
        interpolation=InterpolationMode.BILINEAR,
        antialias=True,
    )
    rows = resized.permute(1, 2, 0).numpy()
    pixels[:] = rows[:, ::-1] if request.flips[number] else rows


def _read_rgb(path: str) -> NDArray[np.uint8]:
    """The stored image as RGB, uint8 [height, width, 3]; EXIF orientation is not applied, transparency is dropped."""
    content = Path(path).read_bytes()
    if content.startswith(JPEG_MAGIC):
        jpeg = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        image: NDArray[np.uint8] = decode_jpeg(jpeg, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
        return image
    with Image.open(io.BytesIO(content)) as opened:
        return np.array(opened.convert("RGB"))


def _reason(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
