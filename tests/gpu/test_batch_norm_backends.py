"""Which kernels torch takes for batch norm on a GPU; asked of it without one."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

BACKENDS = {torch.float32: "Cudnn", torch.float16: "Cudnn", torch.bfloat16: "Native"}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", list(BACKENDS))
def test_bfloat16_is_the_one_precision_that_cudnn_does_not_normalise(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """As docs/performance.md says; where this changes, bfloat16 need not be compiled any more to be fast."""
    with FakeTensorMode():
        images = torch.empty(4, 8, 6, 6, dtype=dtype, device="cuda").to(memory_format=layout)
        channels = torch.empty(8, device="cuda")
        backend = torch._C._select_batch_norm_backend(images, channels, channels, channels, channels, True, 1e-5)
    assert backend.name == BACKENDS[dtype]
