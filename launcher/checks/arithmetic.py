"""Tests of a device's arithmetic and memory. `python -m launcher.checks.arithmetic JSON` tests one GPU.

Products are compared with float64, within a bound that holds for every order of summation, so that no working device
fails. Memory is filled with patterns and read back.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from launcher.checks.children import Answer

_SIZE = 512  # of the matrices
_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}  # half a unit in the last place
_BITS = (0x5555555555555555, ~0x5555555555555555)  # each bit is once 0 and once 1, unlike its neighbours
_CHUNK = 2**24  # words that are compared at once
_FRACTION = 0.8  # of a GPU's free memory that is tested: the context and the allocator need some


def product_errors(
    device: torch.device, dtype: torch.dtype, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> int:
    """The number of wrong elements in two products of [512, 512] matrices of `dtype`, compared with float64.

    With integers from -4 to 4 every sum is exact in float32, so the product must be the rounded exact one, bit by bit.
    With random numbers |error| <= 2 gamma_n |A||B| + u |AB| with gamma_n = n v / (1 - n v), for every order of
    summation; v is the roundoff of the accumulator (float32, or float64 for float64), u that of `dtype` (Higham,
    Accuracy and Stability of Numerical Algorithms, 3.5; the 2 is for the float64 reference, which is rounded too).
    """
    generator = torch.Generator().manual_seed(0)
    shape = (_SIZE, _SIZE)
    left, right = (torch.randint(-4, 5, shape, generator=generator).to(dtype) for _ in range(2))
    product = multiply(left.to(device), right.to(device)).cpu()
    errors = int((product != (left.double() @ right.double()).to(dtype)).sum())

    left, right = (torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2))
    exact = left.double() @ right.double()
    summed = _SIZE * _ROUNDOFF[torch.float64 if dtype == torch.float64 else torch.float32]
    magnitude = left.double().abs() @ right.double().abs()
    bound = 2 * summed / (1 - summed) * magnitude + _ROUNDOFF[dtype] * exact.abs()
    product = multiply(left.to(device), right.to(device)).cpu()
    return errors + int((~((product.double() - exact).abs() <= bound)).sum())  # NaN is within no bound


def pattern_errors(buffer: Tensor, between: Callable[[], None] = lambda: None) -> int:
    """The number of words of `buffer`, int64 [n], that change: of two bit patterns, then of each word's own index.

    `between` is called after each write, before the buffer is read back.
    """
    errors = 0
    for word in _BITS:
        buffer.fill_(word)
        between()
        errors += sum(int((chunk != word).sum()) for chunk in buffer.split(_CHUNK))
    starts = range(0, len(buffer), _CHUNK)
    for start, chunk in zip(starts, buffer.split(_CHUNK), strict=False):
        torch.arange(start, start + len(chunk), out=chunk)
    between()
    for start, chunk in zip(starts, buffer.split(_CHUNK), strict=False):
        errors += int((chunk != torch.arange(start, start + len(chunk), device=chunk.device)).sum())
    return errors


def examine_gpu(index: int, fraction: float = _FRACTION, most_bytes: float = float("inf")) -> Answer:
    """Test products in float32 and bfloat16, and `fraction` of the free memory or `most_bytes`, of GPU `index`.

    Answers {"name", "wrong_products", "num_bytes": tested, "changed_words"}. Restores the process's precision settings
    and frees the memory.
    """
    device = torch.device("cuda", index)
    with _sums_in_float32():
        wrong = sum(product_errors(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    free, _ = torch.cuda.mem_get_info(device)
    num_bytes = int(min(free * fraction, most_bytes)) // 8 * 8
    buffer = torch.empty(num_bytes // 8, dtype=torch.int64, device=device)
    errors = pattern_errors(buffer, lambda: torch.cuda.synchronize(device))
    del buffer
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    name = torch.cuda.get_device_name(device)
    return {"name": name, "wrong_products": wrong, "num_bytes": num_bytes, "changed_words": errors}


@contextlib.contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Sum in float32, as the bound of `product_errors` assumes."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction, matmul.fp32_precision
    matmul.allow_bf16_reduced_precision_reduction, matmul.fp32_precision = False, "ieee"
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction, matmul.fp32_precision = before


if __name__ == "__main__":
    print(json.dumps(examine_gpu(**json.loads(sys.argv[1]))))
