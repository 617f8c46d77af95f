"""Decoding with NVIDIA DALI, on a GPU or on the CPU. Only this file imports DALI, when a decoder is used.

Bytes, windows and flips come from the requests, so DALI decodes the same samples as every other decoder. Only ordinary,
complete JPEGs are given to it as they are. Pillow decodes all other images, windows of one column, and whatever DALI
refuses, and DALI gets the raw pixels. On the CPU its decoded windows equal those of the CPU decoder bit for bit;
resizing rounds differently (the test of this module has the differences).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from resnet_dist.data.decoding.choice import dali_is_installed
from resnet_dist.data.decoding.cpu import pillow_window
from resnet_dist.data.decoding.requests import BatchRequest, Decoded
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
# an encoded image, its window there, and the error for which it is black
_Sample = tuple[bytes, tuple[int, int, int, int], DataError | None]


is_installed = dali_is_installed


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
        coming: deque[tuple[BatchRequest, list[Future[list[_Sample]]]]] = deque()  # that threads read
        pending: deque[tuple[BatchRequest, _Errors]] = deque()  # that DALI has, oldest first
        failures: list[Exception] = []  # of the requests
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="read")

        def read_next() -> None:
            try:
                request = next(requests)
            except StopIteration:
                return
            except Exception as error:  # to be raised after the images before it, and not taken for DALI's
                failures.append(error)
            else:
                coming.append((request, [pool.submit(_samples, request, part) for part in self._parts(request)]))

        def source() -> _Arrays:
            if not coming and not failures:
                read_next()
            if not coming:
                raise StopIteration  # tells DALI that there are no more
            request, parts = coming.popleft()
            if not failures:
                read_next()
            arrays, errors = _arrays(request, [sample for part in parts for sample in part.result()])
            pending.append((request, errors))
            return arrays

        # Built here, not in the constructor: a pipeline cannot be used after a fork, and its threads end with it.
        pipeline = self._pipeline(source)
        try:
            while True:
                try:
                    images = _run(pipeline)
                except StopIteration:
                    break
                except RuntimeError:
                    if not pending:
                        raise
                    yield self._again(pending.popleft()[0])
                    continue
                request, errors = pending.popleft()
                yield Decoded(request, images, errors)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            del pipeline
        for failure in failures:
            raise failure

    def _parts(self, request: BatchRequest) -> list[range]:
        size = -(-len(request) // self.num_threads)
        return [range(first, min(first + size, len(request))) for first in range(0, len(request), size)]

    def _again(self, request: BatchRequest) -> Decoded:
        """Decode a request in which DALI has refused an image. DALI does not always say which: each is decoded alone.

        Pillow decodes those that DALI refuses, or says what is wrong with them.
        """
        samples = _samples(request, range(len(request)))
        singles = iter([_arrays(request.only(number), [sample]) for number, sample in enumerate(samples)])
        pipeline = self._pipeline(lambda: next(singles)[0])
        for number in range(len(request)):
            try:
                _run(pipeline)
            except RuntimeError:
                samples[number] = _by_pillow(request, number, samples[number][0])
        arrays, errors = _arrays(request, samples)
        whole = iter([arrays])
        return Decoded(request, _run(self._pipeline(lambda: next(whole))), errors)

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


def _run(pipeline: Any) -> Tensor:
    """The next images, uint8 [n, 3, height, width]. With DALI's default executor the tensor owns their memory."""
    (images,) = pipeline.run()
    return from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


def _samples(request: BatchRequest, numbers: range) -> list[_Sample]:
    """Samples of a request in the form in which DALI decodes them."""
    samples: list[_Sample] = []
    for number in numbers:
        try:
            content, ordinary = request.encoded(number)
        except DataError as error:
            samples.append((_BLACK, _WHOLE_BLACK, error))
        else:
            top, left, height, width = request.windows[number].tolist()
            samples.append(
                (content, (top, left, height, width), None) if ordinary else _by_pillow(request, number, content)
            )
    return samples


def _by_pillow(request: BatchRequest, number: int, content: bytes) -> _Sample:
    """A sample as raw pixels, in a file that DALI reads (Netpbm's P6)."""
    try:
        pixels = pillow_window(request, number, content)
    except DataError as error:
        return _BLACK, _WHOLE_BLACK, error
    height, width = pixels.shape[:2]
    return f"P6 {width} {height} 255\n".encode() + pixels.tobytes(), (0, 0, height, width), None


def _arrays(request: BatchRequest, samples: list[_Sample]) -> tuple[_Arrays, _Errors]:
    """The samples of a request as DALI takes them, and the errors of those that are black instead."""
    encoded = [np.frombuffer(content, dtype=np.uint8) for content, _, _ in samples]
    windows = np.array([window for _, window, _ in samples], dtype=np.int32)
    corners, sizes = np.ascontiguousarray(windows[:, :2]), np.ascontiguousarray(windows[:, 2:])
    resolutions = [np.full(2, request.resolution, np.float32)] * len(samples)
    errors = {number: error for number, (_, _, error) in enumerate(samples) if error is not None}
    return (encoded, corners, sizes, request.flips.astype(np.int32), resolutions), errors


_BLACK, _WHOLE_BLACK = b"P6 1 1 255\n\0\0\0", (0, 0, 1, 1)
