"""The copy in host memory that a checkpoint is written from while training continues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class HostBuffers:
    """Host memory that is reused from one checkpoint to the next. Its size is that of the state.

    New memory would cost a page fault per 4 KiB each time, and pinning it takes longer than the copy itself.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, list[Tensor]] = {}  # by shape, strides, dtype and pinning

    def reserve(self, tensors: Iterable[Tensor]) -> None:
        """Allocate and touch the memory for copies of `tensors`, so that the first copy does not have to."""
        needed = Counter[Hashable]()
        for tensor in tensors:
            self._buffer(tensor, needed).zero_()

    @contextmanager
    def copying(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield a function that copies a tensor to a buffer. Buffers are valid from the end of the block to the next.

        Tensors on a GPU are copied to pinned memory, with a single synchronization at the end of the block. A buffer
        has its tensor's memory layout, so the copy is a plain one; the rows are put in order when the file is written.
        """
        used = Counter[Hashable]()
        devices: set[torch.device] = set()

        def copy(tensor: Tensor) -> Tensor:
            if tensor.is_cuda:
                devices.add(tensor.device)
            return self._buffer(tensor, used).copy_(tensor.detach(), non_blocking=True)

        yield copy
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        self._buffers = {key: self._buffers[key][:number] for key, number in used.items()}

    def _buffer(self, tensor: Tensor, used: Counter[Hashable]) -> Tensor:
        """Return the next buffer that fits `tensor`, allocated now if all existing ones are `used`."""
        key = (tensor.shape, tensor.stride(), tensor.dtype, tensor.is_cuda)
        buffers = self._buffers.setdefault(key, [])
        used[key] += 1
        if len(buffers) < used[key]:
            buffers.append(torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False))
        return buffers[used[key] - 1]
