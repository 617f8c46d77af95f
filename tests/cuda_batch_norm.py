"""torch's batch-norm kernels for CUDA, written with operators that a CPU has, to run and count what a GPU would run.

They are registered as CPU kernels of the same operators: a dispatch mode sees the operators that a GPU would get. What
they accept is what the kernels of torch 2.14 accept (aten/src/ATen/native/cuda/Normalization.cu).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from resnet_dist.models import span_norm, spans


def _dims(input: Tensor) -> list[int]:
    return [0, *range(2, input.dim())]


def _like(values: Tensor, input: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (input.dim() - 2))


def _accumulated(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def _check(input: Tensor, *vectors: Tensor) -> None:
    assert len(input) > 0
    for vector in vectors:
        assert vector.shape == (input.shape[1],)
        assert vector.dtype is _accumulated(input)


def _stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check(input)
    variance, mean = torch.var_mean(input.to(_accumulated(input)), _dims(input), correction=0)
    return mean, (variance + eps).rsqrt()


def _gather(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `batch_norm_reduce_statistics_kernel`, row by row."""
    assert running_mean is running_var is None
    assert input.dtype is mean.dtype is invstd.dtype is counts.dtype
    assert mean.shape == invstd.shape == (len(counts), mean.shape[1])
    average, squares = torch.zeros_like(mean[0]), torch.zeros_like(mean[0])
    total = 0.0
    for row, count in enumerate(counts.tolist()):
        of_row = (1 / invstd[row]).square().sub(eps) * count
        factor = 1 / (total + count)
        squares = squares + of_row + (average - mean[row]).square() * total * count * factor
        average = total * factor * average + count * factor * mean[row]
        total += count
    return average, (squares / total + eps).rsqrt()


def _elemt(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    _check(input, mean, invstd)
    output = (input.to(mean.dtype) - _like(mean, input)) * _like(invstd, input)
    output = output if weight is None else output * _like(weight, input)
    return (output if bias is None else output + _like(bias, input)).to(input.dtype)


def _elemt_out(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    eps: float,
    *,
    out: Tensor,
) -> Tensor:
    assert out.stride() == input.stride()
    return out.copy_(_elemt(input, weight, bias, mean, invstd, eps))


def _reduce(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(input, mean, invstd)
    assert grad_out.stride() == input.stride()
    assert grad_out.dtype is input.dtype
    g = grad_out.to(mean.dtype)
    sums = g.sum(_dims(input))
    products = (g * (input.to(mean.dtype) - _like(mean, input))).sum(_dims(input))
    return sums, products, products * invstd, sums.clone()


def _backward_elemt(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    _check(input, mean, invstd, sum_dy, sum_dy_xmu)
    assert weight is None or weight.dtype is mean.dtype
    assert count.dtype is torch.int32
    total = count.sum()
    centred = input.to(mean.dtype) - _like(mean, input)
    slope = sum_dy_xmu / total * invstd.square()
    scale = invstd if weight is None else invstd * weight
    g = grad_out.to(mean.dtype) - _like(sum_dy / total, input) - centred * _like(slope, input)
    return (g * _like(scale, input)).to(input.dtype)


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Let CPU tensors take the code path of CUDA tensors."""
    found = (span_norm._has_cuda_kernels, spans.on_gpu)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("batch_norm_stats", _stats, "CPU")
        library.impl("batch_norm_gather_stats_with_counts", _gather, "CPU")
        library.impl("batch_norm_elemt", _elemt, "CPU")
        library.impl("batch_norm_elemt.out", _elemt_out, "CPU")
        library.impl("batch_norm_backward_reduce", _reduce, "CPU")
        library.impl("batch_norm_backward_elemt", _backward_elemt, "CPU")
        span_norm._has_cuda_kernels = lambda input: True
        spans.on_gpu = lambda tensor: True
        try:
            yield
        finally:
            span_norm._has_cuda_kernels, spans.on_gpu = found
