"""Decoding with NVIDIA DALI, on a GPU or on the CPU. Only this file imports DALI, when a decoder is used.

Files, windows and flips come from the requests, so DALI decodes the same samples as every other decoder. On the CPU its
decoded pixels and windows equal torchvision's bit for bit; resizing rounds differently (the test of this module has
the differences).
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from resnet_dist.data.decode_torchvision import decode_sample
from resnet_dist.data.requests import BatchRequest
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


# paths, corners, sizes, flips
_Arrays = tuple[list[NDArray[np.uint8]], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]


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

    def decode(
        self, requests: Iterator[BatchRequest], resolution: int
    ) -> Generator[tuple[BatchRequest, Tensor], None, None]:
        """See `Decoder.decode`; tensors are on the GPU if there is one, and remain valid."""
        pending: deque[BatchRequest] = deque()  # requests that DALI has read, oldest first

        def source() -> _Arrays:
            request = next(requests)  # StopIteration tells DALI that there are no more
            pending.append(request)
            return _arrays(request)

        # Built here, not in the constructor: a pipeline cannot be used after a fork, and its threads end with it.
        pipeline = self._pipeline(source, resolution)
        try:
            while True:
                (images,) = pipeline.run()
                # No copy: with DALI's default executor the tensor owns the memory.
                yield pending.popleft(), from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)
        except StopIteration:
            return
        except RuntimeError as error:
            broken = _broken_sample(pending[0], resolution) if pending else None
            if broken is None:
                raise
            # The frames of a traceback would keep the pipeline and its threads alive.
            raise broken from error.with_traceback(None)
        finally:
            del pipeline

    def _pipeline(self, source: Callable[[], _Arrays], resolution: int) -> Any:
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
            paths, corners, sizes, flips = fn.external_source(
                source=source,
                num_outputs=4,
                batch=True,
                dtype=[types.UINT8, types.INT32, types.INT32, types.INT32],
                ndim=[1, 1, 1, 0],
            )
            images = fn.decoders.image_slice(
                fn.io.file.read(paths),
                start=corners,
                shape=sizes,
                axis_names="HW",
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                **(_GPU_DECODER if on_gpu else {}),
            )
            images = fn.resize(images, size=[resolution, resolution], interp_type=types.INTERP_LINEAR, antialias=True)
            pipeline.set_outputs(fn.flip(images, horizontal=flips, vertical=0))
        pipeline.build()
        return pipeline


def _arrays(request: BatchRequest) -> _Arrays:
    """A request in DALI's form: paths as bytes, corners int32 [n, 2], sizes int32 [n, 2], flips int32 [n]."""
    paths = [np.frombuffer(path.encode("utf-8", "surrogateescape"), dtype=np.uint8) for path in request.paths]
    corners, sizes = np.ascontiguousarray(request.windows[:, :2]), np.ascontiguousarray(request.windows[:, 2:])
    return paths, corners, sizes, request.flips.astype(np.int32)


def _broken_sample(request: BatchRequest, resolution: int) -> DataError | None:
    """The DataError of the first sample that cannot be decoded; None if all can.

    DALI's messages do not always name the file, so the request is decoded again with Pillow, sample by sample.
    """
    pixels = np.empty((resolution, resolution, 3), dtype=np.uint8)
    for number in range(len(request)):
        try:
            decode_sample(request, number, pixels)
        except DataError as broken:
            return broken
    return None
