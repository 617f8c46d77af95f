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
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from resnet_dist.data.decoding.choice import dali_is_installed
from resnet_dist.data.decoding.cpu import pillow_window
from resnet_dist.data.decoding.requests import BatchRequest, Decoded
from resnet_dist.errors import DataError, MissingPackage
from resnet_dist.recipe.schema import DaliRecipe

# Buffers of decoders on a GPU that fit the largest ImageNet image from the start, because growing a buffer stalls the
# GPU. From NVIDIA's ImageNet examples (docs/examples/use_cases in NVIDIA/DALI).
_LARGEST = {"preallocate_width_hint": 5980, "preallocate_height_hint": 6430}  # pixels
_MIB = 2**20

# encoded images, corners, sizes, flips, resolutions
Arrays = tuple[
    list[NDArray[np.uint8]], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], list[NDArray[np.float32]]
]
_Errors = dict[int, DataError]
Window = tuple[int, int, int, int]  # top, left, height, width
# an encoded image, its window there, and the error for which it is black
_Sample = tuple[bytes, Window, DataError | None]


is_installed = dali_is_installed


class DaliDecoder:
    """A `Decoder` on GPU `device_id` (None: the CPU) that works `prefetch` requests ahead in `num_threads` CPU threads.

    Requests have at most `max_batch_size` samples. `settings` and `regions` are about a GPU: whether only the region of
    a window is decoded, or the whole image. The pipeline is built by the first `decode` and kept for the next ones; its
    threads and memory are freed with the decoder. Raises MissingPackage if DALI is not installed.
    """

    def __init__(
        self,
        num_threads: int,
        prefetch: int,
        max_batch_size: int,
        device_id: int | None = None,
        settings: DaliRecipe | None = None,
        regions: bool = True,
    ) -> None:
        if not is_installed():
            raise MissingPackage("data.decoder", "NVIDIA DALI", "pip install 'resnet-launcher[dali]'")
        self.num_threads, self.prefetch = num_threads, prefetch
        self.max_batch_size, self.device_id = max_batch_size, device_id
        self.settings = DaliRecipe() if settings is None else settings
        self.regions = regions
        self._kept: Pipeline | None = None  # not in use by a call of `decode`

    def decode(self, requests: Iterator[BatchRequest]) -> Generator[Decoded, None, None]:
        """See `Decoder.decode`; tensors are on the GPU if there is one, and remain valid.

        On a GPU the host does not wait for the images: the stream does that is current where the next batch is asked
        for.
        """
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

        def source() -> Arrays:
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

        # Built here, not in the constructor: a pipeline cannot be used after a fork. Nobody else gets it meanwhile.
        pipeline, self._kept = self._kept, None
        if pipeline is None:
            pipeline = Pipeline(self)
        try:
            pipeline.start(source)
            while True:
                try:
                    images = pipeline.next()
                except StopIteration:
                    break
                except RuntimeError:
                    if not pending:
                        raise
                    yield self._again(pending.popleft()[0])
                    continue
                request, errors = pending.popleft()
                yield Decoded(request, images, errors)
            self._kept = pipeline
        except GeneratorExit:
            self._kept = pipeline
            raise
        finally:
            pipeline.stop()
            del pipeline
            pool.shutdown(wait=True, cancel_futures=True)
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
        singles = iter([_arrays(request.only(number), [sample])[0] for number, sample in enumerate(samples)])
        pipeline = Pipeline(self, small=True)
        pipeline.start(lambda: next(singles))
        for number in range(len(request)):
            try:
                pipeline.next()
            except RuntimeError:
                samples[number] = _by_pillow(request, number, samples[number][0])
        arrays, errors = _arrays(request, samples)
        whole = iter([arrays])
        pipeline.start(lambda: next(whole))
        return Decoded(request, pipeline.next(), errors)


class Pipeline:
    """A DALI pipeline, which decodes the batches of one source after another."""

    def __init__(self, decoder: DaliDecoder, *, small: bool = False) -> None:
        """`small`: in one thread, without large buffers; for a few batches."""
        self._source = _Source()
        self._device_id = decoder.device_id
        self._is_new = True
        self._pipeline = _defined(decoder, self._source, small)
        self._pipeline.build()

    def start(self, source: Callable[[], Arrays]) -> None:
        """Decode the batches of `source` from now on. What is left of an earlier source is dropped.

        Raises RuntimeError if DALI cannot be used any more.
        """
        if not self._is_new:
            self._source.current = _ended
            self._drop_rest()
            self._pipeline.reset()
        self._is_new = False
        self._source.current = source

    def _drop_rest(self) -> None:
        """Take the batches that DALI has asked for ahead: it must hand them out before a reset."""
        error = None
        for _ in range(self._pipeline.prefetch_queue_depth + 2):  # later errors are not those of images
            try:
                self._run()
            except StopIteration:
                return
            except RuntimeError as problem:  # an image that cannot be decoded
                error = problem
        raise RuntimeError("DALI does not end the batches of an earlier source") from error

    def stop(self) -> None:
        """Forget the source. What DALI has already taken from it remains until the next `start`."""
        self._source.current = _ended

    def next(self) -> Tensor:
        """The next images, uint8 [n, 3, height, width]. With DALI's default executor the tensor owns their memory.

        On a GPU the current stream waits for them, and DALI waits for the device in a thread of its own before it uses
        their memory again. Raises StopIteration after the last batch, RuntimeError for one that cannot be decoded.
        """
        (images,) = self._run()
        return from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)

    def _run(self) -> Any:
        if self._device_id is None:
            return self._pipeline.run()
        return self._pipeline.run(torch.cuda.current_stream(self._device_id))


class _Source:
    """What DALI calls for a batch. It refers to no pipeline, so that a pipeline is freed with its last reference."""

    def __init__(self) -> None:
        self.current: Callable[[], Arrays] = _ended

    def __call__(self) -> Arrays:
        return self.current()


def _ended() -> Arrays:
    raise StopIteration


def _defined(decoder: DaliDecoder, source: Callable[[], Arrays], small: bool) -> Any:
    """A DALI pipeline that is not built yet: its operators, with their options checked by DALI."""
    import nvidia.dali

    dali: Any = nvidia.dali  # its type stubs lack the names that are defined at import
    fn, types = dali.fn, dali.types
    settings, on_gpu = decoder.settings, decoder.device_id is not None
    options: dict[str, Any] = {"output_type": types.RGB, "adjust_orientation": False}
    if on_gpu:
        options |= {
            "jpeg_fancy_upsampling": True,  # upsample chroma as the CPU decoders do
            "affine": settings.affinity,  # DALI's default is to bind threads to cores
            "device_memory_padding": 0 if small else settings.device_padding_mib * _MIB,
            "host_memory_padding": 0 if small else settings.host_padding_mib * _MIB,
            **({} if small else _LARGEST),
            **({} if settings.hw_decoder_load is None else {"hw_decoder_load": settings.hw_decoder_load}),
        }
    pipeline = dali.Pipeline(
        batch_size=decoder.max_batch_size,
        num_threads=1 if small else decoder.num_threads,
        device_id=decoder.device_id,
        prefetch_queue_depth=1 if small else max(1, decoder.prefetch),
        set_affinity=on_gpu and settings.affinity,
    )
    with pipeline:
        encoded, corners, sizes, flips, resolutions = fn.external_source(
            source=source,
            num_outputs=5,
            batch=True,
            dtype=[types.UINT8, types.INT32, types.INT32, types.INT32, types.FLOAT],
            ndim=[1, 1, 1, 0, 1],
        )
        window = {"start": corners, "shape": sizes, "axis_names": "HW"}
        device = "mixed" if on_gpu else "cpu"
        if decoder.regions:
            images = fn.decoders.image_slice(encoded, device=device, **window, **options)
        else:
            images = fn.slice(fn.decoders.image(encoded, device=device, **options), **window)
        images = fn.resize(images, size=resolutions, interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(fn.flip(images, horizontal=flips, vertical=0))
    return pipeline


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


def _arrays(request: BatchRequest, samples: list[_Sample]) -> tuple[Arrays, _Errors]:
    """The samples of a request as DALI takes them, and the errors of those that are black instead."""
    errors = {number: error for number, (_, _, error) in enumerate(samples) if error is not None}
    return arrays_of([(content, window) for content, window, _ in samples], request.flips, request.resolution), errors


def arrays_of(samples: list[tuple[bytes, Window]], flips: NDArray[np.bool_], resolution: int) -> Arrays:
    """Encoded images, their windows, flips and resolution as a `Pipeline` takes them."""
    encoded = [np.frombuffer(content, dtype=np.uint8) for content, _ in samples]
    windows = np.array([window for _, window in samples], dtype=np.int32)
    corners, sizes = np.ascontiguousarray(windows[:, :2]), np.ascontiguousarray(windows[:, 2:])
    resolutions = [np.full(2, resolution, np.float32)] * len(samples)
    return encoded, corners, sizes, flips.astype(np.int32), resolutions


_BLACK, _WHOLE_BLACK = b"P6 1 1 255\n\0\0\0", (0, 0, 1, 1)
