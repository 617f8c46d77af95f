"""The copy in host memory that a checkpoint is written from while the training goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping

import torch
from torch import Tensor


class HostBuffers:
    """Host memory that is kept from one checkpoint to the next: its size is that of the state, once.

    Fresh memory would cost a page fault per 4 KiB each time, and pinning it more than the copy itself.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, list[Tensor]] = {}  # by form: any tensor of the same form may use it

    def reserve(self, tensors: Iterable[Tensor]) -> None:
        """Take memory for copies of `tensors` ahead of the first one, and touch it."""
        needed = Counter[Hashable]()
        for tensor in tensors:
            self._buffer(tensor, needed).zero_()

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy `tensors` into the buffers and return these; they hold until the next copy.

        Tensors of a GPU go to pinned memory, all under way at once and waited for once. A buffer has its tensor's own
        memory layout: the loop waits for a plain copy, and whoever writes the file puts the rows in order.
        """
        used = Counter[Hashable]()
        copies, devices = {}, set()
        for name, tensor in tensors.items():
            copies[name] = self._buffer(tensor, used)
            copies[name].copy_(tensor.detach(), non_blocking=True)
            if tensor.is_cuda:
                devices.add(tensor.device)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        self._buffers = {form: self._buffers[form][:number] for form, number in used.items()}
        return copies

    def _buffer(self, tensor: Tensor, used: Counter[Hashable]) -> Tensor:
        """The next buffer of the tensor's form, taken now if all that there are have been `used`."""
        form = (tensor.shape, tensor.stride(), tensor.dtype, tensor.is_cuda)
        buffers = self._buffers.setdefault(form, [])
        used[form] += 1
        if len(buffers) < used[form]:
            buffers.append(torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False))
        return buffers[used[form] - 1]
