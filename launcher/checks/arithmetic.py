"""Whether a device computes and remembers correctly. `python -m launcher.checks.arithmetic JSON` tests one GPU.

Products are compared with float64, within a bound that holds for every order of summation, so that no sound device
fails. Memory is filled with patterns and read back.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_SIZE = 512  # of the matrices
_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}  # half a unit in the last place
_BITS = (0x5555555555555555, ~0x5555555555555555)  # every bit is once 0 and once 1, unlike its neighbours
_CHUNK = 2**24  # words that are compared at once
_SHARE = 0.8  # of a GPU's free memory that is tested: the context and the allocator need some


def product_errors(
    device: torch.device, dtype: torch.dtype, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> int:
    """Wrong elements of two products of [512, 512] matrices of `dtype`, which are computed in float64 for comparison.

    Of whole numbers from -4 to 4 every sum is exact in float32, so the product must be the rounded exact one, bit by
    bit. Of random numbers |error| <= 2 gamma_n |A||B| + u |AB| with gamma_n = n v / (1 - n v), for every order of
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
    """Words of `buffer`, int64 [n], that do not hold what was written to them: bit patterns, then each its own number.

    `between` is called after each writing, before it is read back.
    """
    errors = 0
    for word in _BITS:
        buffer.fill_(word)
        between()
        errors += sum(int((chunk != word).sum()) for chunk in buffer.split(_CHUNK))
    start = 0
    for chunk in buffer.split(_CHUNK):
        torch.arange(start, start + len(chunk), out=chunk)
        start += len(chunk)
    between()
    start = 0
    for chunk in buffer.split(_CHUNK):
        errors += int((chunk != torch.arange(start, start + len(chunk), device=chunk.device)).sum())
        start += len(chunk)
    return errors


def examine_gpu(index: int, share: float = _SHARE, most_bytes: float = float("inf")) -> dict[str, Any]:
    """Products in float32 and bfloat16, and `share` of the free memory or `most_bytes`, of GPU `index`.

    The process's own precision stays as it is, and the memory is given back.
    """
    device = torch.device("cuda", index)
    with _sums_in_float32():
        wrong = sum(product_errors(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    free, _ = torch.cuda.mem_get_info(device)
    num_bytes = int(min(free * share, most_bytes)) // 8 * 8
    errors = pattern_errors(
        torch.empty(num_bytes // 8, dtype=torch.int64, device=device), lambda: torch.cuda.synchronize(device)
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return {
        "name": torch.cuda.get_device_name(device),
        "wrong_products": wrong,
        "num_bytes": num_bytes,
        "changed_words": errors,
    }


@contextlib.contextmanager
def _sums_in_float32() -> Iterator[None]:
    """The bound of `product_errors` is for these."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction, matmul.fp32_precision
    matmul.allow_bf16_reduced_precision_reduction, matmul.fp32_precision = False, "ieee"
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction, matmul.fp32_precision = before


if __name__ == "__main__":
    print(json.dumps(examine_gpu(**json.loads(sys.argv[1]))))
