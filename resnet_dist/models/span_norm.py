"""Normalisation of the spans of one worker's input: several spans on it, or spans that it shares with other workers.

The large tensors are read and written by torch's own kernels. On a GPU these are the kernels of torch.nn.SyncBatchNorm,
which exist for CUDA only. On a CPU, and in compiled code, they are the nearest operators that torch offers there. What
is computed is the same: Ioffe and Szegedy 2015 (arXiv 1502.03167), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from resnet_dist.models.spans import Spans, on_gpu

_aten = torch.ops.aten
_FEWEST = 256  # values of a channel that are added up in float32: with fewer, combining the parts would take long


def normalise_shared(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, spans: Spans, layer: int
) -> tuple[Tensor, Tensor]:
    """Normalise each slice of `input`, [samples, channels, ...], by the statistics of its whole span. A collective.

    Returns the output and the result of `Spans.moments`. The gradients of weight and bias are those of this worker's
    samples: the engine's all-reduce of gradients sums them. The backward pass is a collective, too.
    """
    return _SharedNorm.apply(input, weight, bias, epsilon, spans, layer)  # type: ignore[no-any-return]


def normalise_several(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    means: Sequence[Tensor | None],
    variances: Sequence[Tensor | None],
    epsilon: float,
) -> Tensor:
    """Normalise each of several equal spans of `input`; write their means and unbiased variances, each [channels]."""
    if torch.compiler.is_compiling():  # which fuses this, and has no operators that write into a part of a tensor
        parts = zip(input.chunk(len(means)), means, variances, strict=True)
        return torch.cat([F.batch_norm(part, m, v, weight, bias, True, 1.0, epsilon) for part, m, v in parts])
    return _SeveralNorm.apply(input, weight, bias, means, variances, epsilon)  # type: ignore[no-any-return]


class _SeveralNorm(torch.autograd.Function):
    """torch's kernel for each span, which writes its part of one output."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        means: Sequence[Tensor | None],
        variances: Sequence[Tensor | None],
        epsilon: float,
    ) -> Tensor:
        output = torch.empty_like(input)
        saved = input.new_empty((2, len(means), input.shape[1]), dtype=sums_dtype(input))
        parts = (input.chunk(len(means)), output.chunk(len(means)), means, variances, *map(Tensor.unbind, saved))
        for part, out, mean, variance, kept, inverse in zip(*parts, strict=True):
            _aten.native_batch_norm.out(
                part, weight, bias, mean, variance, True, 1.0, epsilon, out=out, save_mean=kept, save_invstd=inverse
            )
        ctx.save_for_backward(input, weight, saved)
        ctx.epsilon = epsilon
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, saved = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
        num_spans = saved.shape[1]
        parts = (gradient.chunk(num_spans), input.chunk(num_spans), *map(Tensor.unbind, saved))
        found = [
            _aten.native_batch_norm_backward(g, part, weight, None, None, mean, inverse, True, ctx.epsilon, mask)
            for g, part, mean, inverse in zip(*parts, strict=True)
        ]
        of_input, of_weight, of_bias = zip(*found, strict=True)
        return (
            torch.cat(of_input) if mask[0] else None,
            sum(of_weight[1:], of_weight[0]) if mask[1] else None,
            sum(of_bias[1:], of_bias[0]) if mask[2] else None,
            None,
            None,
            None,
        )


class _SharedNorm(torch.autograd.Function):
    """The large tensors are read once for statistics and once for the output, in both passes."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, spans: Spans, layer: int
    ) -> tuple[Tensor, Tensor]:
        normalise = _cuda_normalise if _has_cuda_kernels(input) else _normalise
        output, moments, saved = normalise(input, weight, bias, epsilon, spans, layer)
        ctx.save_for_backward(input, weight, bias, *saved)
        ctx.spans, ctx.layer, ctx.epsilon = spans, layer, epsilon
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)  # no zeros as the gradient of the moments
        return output, moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, *saved = ctx.saved_tensors
        differentiate = _cuda_gradients if _has_cuda_kernels(input) else _gradients
        of_input, of_weight, of_bias = differentiate(gradient, input, weight, saved, ctx.spans, ctx.layer)
        return (
            of_input,
            None if weight is None else of_weight.to(weight.dtype),
            None if bias is None else of_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _has_cuda_kernels(input: Tensor) -> bool:
    # without a fake kernel, and nothing that the compiler could fuse with the operations around them
    return input.is_cuda and not torch.compiler.is_compiling()


def _cuda_normalise(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, spans: Spans, layer: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The output, the moments, and what `_cuda_gradients` needs of them."""
    dtype, parts = sums_dtype(input), _parts(input, spans)
    statistics: list[Tensor] = []
    for part in parts:
        if len(part):
            statistics += torch.batch_norm_stats(part, epsilon)
        else:
            statistics += [input.new_zeros(input.shape[1], dtype=dtype), input.new_ones(input.shape[1], dtype=dtype)]
    moments = spans.moments(layer, statistics, epsilon)
    saved = moments.to(dtype)
    means, deviations = saved.unbind()
    if len(parts) == 1 and len(input):
        output = torch.batch_norm_elemt(input, weight, bias, means[0], deviations[0], epsilon)
        return output, moments, [saved]
    output = torch.empty_like(input)
    for part, out, mean, deviation in zip(parts, _parts(output, spans), means, deviations, strict=True):
        if len(part):
            torch.batch_norm_elemt(part, weight, bias, mean, deviation, epsilon, out=out)
    return output, moments, [saved]


def _cuda_gradients(
    gradient: Tensor, input: Tensor, weight: Tensor | None, saved: Sequence[Tensor], spans: Spans, layer: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias."""
    means, deviations = saved[0].unbind()
    weight = None if weight is None else weight.to(saved[0].dtype)
    parts = list(
        zip(_parts(_laid_out_as(input, gradient), spans), _parts(input, spans), means, deviations, strict=True)
    )
    own: list[Tensor] = []
    of_parameters = []
    for g, part, mean, deviation in parts:
        sums: Sequence[Tensor]
        if len(part):
            sums = torch.batch_norm_backward_reduce(g, part, mean, deviation, weight, True, True, True)
        else:
            sums = saved[0].new_zeros((4, input.shape[1])).unbind()
        own += sums[:2]  # of g and of g × (x − mean)
        of_parameters.append(sums[2:])
    sums_of, products_of = spans.sums(layer, own).unbind()
    counts = spans.value_counts(math.prod(input.shape[2:]), input.device)
    found = [
        torch.batch_norm_backward_elemt(g, part, mean, deviation, weight, *rest)
        for (g, part, mean, deviation), *rest in zip(parts, sums_of, products_of, counts, strict=True)
        if len(part)
    ]
    of_weight, of_bias = zip(*of_parameters, strict=True)
    return _joined(found, input), _total(of_weight), _total(of_bias)


def _normalise(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, spans: Spans, layer: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The output, the moments, and what `_gradients` needs of them."""
    dtype, parts = sums_dtype(input), _parts(input, spans)
    statistics = [values for part in parts for values in _statistics(part.to(dtype), epsilon)]
    if torch.compiler.is_compiling():
        moments = torch.ops.resnet_dist.span_moments(statistics, epsilon, spans.handle, layer)
    else:
        moments = spans.moments(layer, statistics, epsilon)
    saved = _computed(_coefficients, moments.new_empty((4, *moments.shape[1:]), dtype=dtype), moments, weight, bias)
    found = [
        torch.addcmul(shift, part.to(dtype), scale).to(input.dtype)
        for part, scale, shift in zip(parts, *_rows(saved[2:], input), strict=True)
    ]
    return _joined(found, input), moments, [saved]


def _coefficients(out: Any, moments: Any, weight: Any, bias: Any) -> None:
    """Means, deviations, and scales and shifts of y = x × scale + shift: `out` is [4, slices, channels].

    The shift is computed in float64 and from the rounded scale: the mean may be large.
    """
    means, deviations = moments
    out[:2] = moments
    out[2] = deviations if weight is None else deviations * weight
    out[3] = -means * out[2] if bias is None else bias - means * out[2]


def _statistics(part: Tensor, epsilon: float) -> list[Tensor]:
    """What `Spans.moments` takes of a slice."""
    if not len(part):
        return [part.new_zeros(part.shape[1])] * 2 if on_gpu(part) else [part.new_zeros((1, part.shape[1]))] * 2
    if torch.compiler.is_compiling():
        variance, mean = torch.var_mean(part, [0, *range(2, part.dim())], correction=0)
        return [mean, (variance + epsilon).rsqrt()] if on_gpu(part) else [mean[None], variance[None]]
    # The kernel adds up float32 values in float32 where channels are last. So its channels are some of the values of a
    # channel each: the sums are short, and the time is the same. (torch.var_mean is exact, and takes 10 times as long.)
    pixels = part.movedim(1, -1)
    if pixels.is_contiguous():
        part = pixels.view(_length(part.numel() // part.shape[1]), -1)
    mean, variance = torch.batch_norm_update_stats(part, None, None, 0.0)
    return [mean.view(-1, pixels.shape[-1]), variance.view(-1, pixels.shape[-1])]


@lru_cache
def _length(num_values: int) -> int:
    """The number of values in each of the equal parts of `num_values`: the smallest divisor from `_FEWEST`."""
    return next((size for size in range(_FEWEST, num_values) if num_values % size == 0), num_values)


def _gradients(
    gradient: Tensor, input: Tensor, weight: Tensor | None, saved: Sequence[Tensor], spans: Spans, layer: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias."""
    coefficients = saved[0]
    dtype = coefficients.dtype
    parts = list(zip(_parts(_laid_out_as(input, gradient), spans), _parts(input, spans), strict=True))
    own: list[Tensor] = []  # sums of g and of g × x_hat
    for (g, part), mean, deviation in zip(parts, *_rows(coefficients[:2]), strict=True):
        if len(part):
            _, products, sums = _aten.native_batch_norm_backward(
                g.to(dtype), part.to(dtype), None, None, None, mean, deviation, True, 0.0, [False, True, True]
            )
            own += [sums, products]
        else:
            own += [torch.zeros_like(mean)] * 2
    if torch.compiler.is_compiling():
        of_spans = torch.ops.resnet_dist.span_sums(own, spans.handle, layer)
    else:
        of_spans = spans.sums(layer, own)
    num_values = spans.num_values(math.prod(input.shape[2:]))
    of_x = _computed(_slopes_and_offsets, torch.empty_like(of_spans), of_spans, coefficients, num_values)
    found = []
    for (g, part), scale, slope, offset in zip(
        parts, *_rows(coefficients[2:3], input), *_rows(of_x, input), strict=True
    ):
        dx = torch.addcmul(offset, part.to(dtype), slope)
        found.append(dx.addcmul_(g.to(dtype), scale).to(input.dtype))
    return _joined(found, input), _total(own[1::2]), _total(own[::2])


def _slopes_and_offsets(out: Any, of_spans: Any, coefficients: Any, num_values: Any) -> None:
    """Those of dx = scale × (g − mean(g) − x_hat × mean(g × x_hat)) = scale × g + slope × x + offset.

    `out` is [2, slices, channels], `of_spans` the sums of g and of g × x_hat, `coefficients` those of `_coefficients`.
    """
    means, deviations, scale, _ = coefficients
    sums, products = of_spans
    factors = -scale / num_values
    out[0] = products * factors * deviations
    out[1] = sums * factors - means * out[0]


def _computed(function: Callable[..., None], out: Tensor, *given: Tensor | int | None) -> Tensor:
    """`out`, after `function` has written into it: tensors in compiled code, else NumPy arrays of the same memory.

    For values per channel, a call of torch takes many times as long as the same one of NumPy.
    """
    if torch.compiler.is_compiling():
        function(out, *given)
    else:
        function(out.numpy(), *(v.detach().numpy() if isinstance(v, Tensor) else v for v in given))
    return out


def sums_dtype(input: Tensor) -> torch.dtype:
    """That of statistics and sums of `input`: half precision would lose the variance."""
    return torch.float64 if input.dtype is torch.float64 else torch.float32


def _parts(input: Tensor, spans: Spans) -> list[Tensor]:
    if len(spans.slices) == 1:
        return [input]
    return [input[part.start : part.stop] for part in spans.slices]


def _laid_out_as(input: Tensor, gradient: Tensor) -> Tensor:
    """`gradient` with the strides of `input`: kernels would go through tensors of different strides slowly."""
    if gradient.stride() == input.stride():
        return gradient
    return torch.empty_like(input).copy_(gradient)


def _joined(parts: Sequence[Tensor], input: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts)) if parts else torch.empty_like(input)


def _total(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)


def _rows(values: Tensor, input: Tensor | None = None) -> list[tuple[Tensor, ...]]:
    """[kinds, slices, channels] as tensors [channels] by kind and slice, or as [1, channels, 1, 1] beside `input`."""
    num_kinds, num_slices, num_channels = values.shape
    shape = (num_channels,) if input is None else (1, num_channels, *[1] * (input.dim() - 2))
    rows = values.reshape(-1, *shape).unbind()
    return [rows[kind * num_slices : (kind + 1) * num_slices] for kind in range(num_kinds)]
