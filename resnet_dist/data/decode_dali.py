"""Decoding with NVIDIA DALI, on a GPU or on the CPU. Only this file imports DALI, when a decoder is used.

Bytes, windows and flips come from the requests, so DALI decodes the same samples as every other decoder. Images that it
would decode differently, or not at all, are decoded by Pillow and given to DALI as raw pixels. On the CPU its decoded
windows equal those of the CPU decoder bit for bit; resizing rounds differently (the test of this module has the
differences).
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from resnet_dist.data.decode_cpu import pillow_window
from resnet_dist.data.requests import BatchRequest, Decoded
from resnet_dist.errors import DataError, MissingPackage

# Buffers for decoders on a GPU, from NVIDIA's ImageNet examples (docs/examples/use_cases in NVIDIA/DALI). They fit the
# largest ImageNet image from the start, because growing a buffer stalls the GPU.
_GPU_DECODER = {
    "jpeg_fancy_upsampling": True,  # upsample chroma as the CPU decoders do
    "device_memory_padding": 211025920,  # bytes
    "host_memory_padding": 140544512,  # bytes
    "preallocate_width_hint": 5980,  # pixels
    "preallocate_height_hint": 6430,  # pixels
}


# encoded images, corners, sizes, flips, resolutions
_Arrays = tuple[
    list[NDArray[np.uint8]], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], list[NDArray[np.float32]]
]
_Errors = dict[int, DataError]


def is_installed() -> bool:
    """Whether DALI can be imported, without importing it."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package `nvidia`
        return False


class DaliDecoder:
    """A `Decoder` on GPU `device_id` (None: the CPU) that works `prefetch` requests ahead in `num_threads` CPU threads.

    Requests have at most `max_batch_size` samples. Raises MissingPackage if DALI is not installed.
    """

    def __init__(self, num_threads: int, prefetch: int, max_batch_size: int, device_id: int | None = None) -> None:
        if not is_installed():
            raise MissingPackage("data.decoder", "NVIDIA DALI", "pip install 'resnet-launcher[dali]'")
        self.num_threads, self.prefetch = num_threads, prefetch
        self.max_batch_size, self.device_id = max_batch_size, device_id

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        """See `Decoder.decode`; tensors are on the GPU if there is one, and remain valid."""
        pending: deque[tuple[BatchRequest, _Errors]] = deque()  # requests that DALI has read, oldest first

        def source() -> _Arrays:
            request = next(requests)  # StopIteration tells DALI that there are no more
            arrays, errors = _arrays(request)
            pending.append((request, errors))
            return arrays

        # Built here, not in the constructor: a pipeline cannot be used after a fork, and its threads end with it.
        pipeline = self._pipeline(source)
        try:
            while True:
                try:
                    (images,) = pipeline.run()
                except StopIteration:
                    return
                except RuntimeError:
                    if not pending:
                        raise
                    yield self._without_broken(pending.popleft()[0])
                    continue
                # No copy: with DALI's default executor the tensor owns the memory.
                request, errors = pending.popleft()
                yield Decoded(request, from_dlpack(images.as_tensor()).permute(0, 3, 1, 2), errors)
        finally:
            del pipeline

    def _without_broken(self, request: BatchRequest) -> Decoded:
        """Decode a request in which DALI has found a broken image. DALI does not always say which.

        Raises DALI's error if Pillow can decode all images.
        """
        found = _broken(request)
        arrays, errors = _arrays(request, found)
        sources = iter([arrays])
        pipeline = self._pipeline(lambda: next(sources))
        (images,) = pipeline.run()
        return Decoded(request, from_dlpack(images.as_tensor()).permute(0, 3, 1, 2), errors)

    def _pipeline(self, source: Callable[[], _Arrays]) -> Any:
        import nvidia.dali

        dali: Any = nvidia.dali  # its type stubs lack the names that are defined at import
        fn, types = dali.fn, dali.types
        on_gpu = self.device_id is not None
        pipeline = dali.Pipeline(
            batch_size=self.max_batch_size,
            num_threads=self.num_threads,
            device_id=self.device_id,
            prefetch_queue_depth=max(1, self.prefetch),
        )
        with pipeline:
            encoded, corners, sizes, flips, resolutions = fn.external_source(
                source=source,
                num_outputs=5,
                batch=True,
                dtype=[types.UINT8, types.INT32, types.INT32, types.INT32, types.FLOAT],
                ndim=[1, 1, 1, 0, 1],
            )
            images = fn.decoders.image_slice(
                encoded,
                start=corners,
                shape=sizes,
                axis_names="HW",
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                **(_GPU_DECODER if on_gpu else {}),
            )
            images = fn.resize(images, size=resolutions, interp_type=types.INTERP_LINEAR, antialias=True)
            pipeline.set_outputs(fn.flip(images, horizontal=flips, vertical=0))
        pipeline.build()
        return pipeline


def _arrays(request: BatchRequest, broken: _Errors | None = None) -> tuple[_Arrays, _Errors]:
    """A request in DALI's form, with black pixels for images that are `broken` or cannot be read, and their errors."""
    encoded: list[NDArray[np.uint8]] = []
    windows, errors = request.windows.copy(), dict(broken or {})
    for number in range(len(request)):
        content = _BLACK
        if number in errors:
            windows[number] = (0, 0, 1, 1)
        else:
            try:
                content, ordinary = request.encoded(number)
                if not ordinary:
                    content = _as_ppm(pillow_window(request, number, content))
                    windows[number, :2] = 0
            except DataError as error:
                errors[number] = error
                windows[number] = (0, 0, 1, 1)
        encoded.append(np.frombuffer(content, dtype=np.uint8))
    corners, sizes = np.ascontiguousarray(windows[:, :2]), np.ascontiguousarray(windows[:, 2:])
    resolutions = [np.full(2, request.resolution, np.float32)] * len(request)
    return (encoded, corners, sizes, request.flips.astype(np.int32), resolutions), errors


def _as_ppm(pixels: NDArray[np.uint8]) -> bytes:
    """Raw pixels, uint8 [height, width, 3], as a file that DALI reads (Netpbm's P6)."""
    return f"P6 {pixels.shape[1]} {pixels.shape[0]} 255\n".encode() + pixels.tobytes()


_BLACK = _as_ppm(np.zeros((1, 1, 3), dtype=np.uint8))


def _broken(request: BatchRequest) -> _Errors:
    """The errors of the images of a request that cannot be decoded."""
    errors: _Errors = {}
    for number in range(len(request)):
        try:
            pillow_window(request, number, request.encoded(number)[0])
        except DataError as broken:
            errors[number] = broken
    return errors
