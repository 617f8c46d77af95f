"""Batch norm over spans of the global batch: the same statistics on any number of workers.

A span that lies on one worker goes through torch's own kernel (cuDNN's where there is one). A span that several workers
share costs one all-reduce forward and one backward, among exactly those workers. torch.nn.SyncBatchNorm refuses CPU
tensors, takes whatever each worker happens to hold for a span, and synchronises the host at every layer.

Running statistics are pooled over all spans of a step: mean of the variances plus variance of the means, made
unbiased, with one update a step, whatever the number of micro-batches and workers.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_dist.models.spans import Spans

log = logging.getLogger(__name__)


class SpanBatchNorm(_BatchNorm):
    """Batch norm over spans, for inputs [share, channels, ...]. Names and shapes of its state are torch's.

    In training, `pooled` (float64 [3, channels]) receives the sums over the spans this worker owns, each weighted by
    its part of the global batch, of the mean, the squared mean and the variance. Where spans are exchanged the layer
    adds them itself; else it leaves its spans' means and variances in `latest` ([2, spans, channels]), and
    `RunningStatistics` adds those of all layers at once: hundreds of small kernels a step less.
    """

    def __init__(self, layer: _BatchNorm, spans: Spans, momentum: float, epsilon: float) -> None:
        super().__init__(layer.num_features, epsilon, momentum, affine=False, track_running_stats=False)
        self.spans = spans
        self.affine, self.track_running_stats = layer.affine, layer.track_running_stats
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.training = layer.training
        self.pooled: Tensor | None = None
        self.latest: Tensor | None = None
        self.num_positions = 1  # height × width of the last input

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm takes [samples, channels, ...], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input`: this worker's share of a micro-batch in training, anything in evaluation."""
        self._check_input_dim(input)
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(input, mean, variance, self.weight, self.bias, mean is None, 0.0, self.eps)
        if input.shape[0] != self.spans.share_size:
            raise ValueError(f"this worker's share has {self.spans.share_size} samples, got {input.shape[0]}")
        self.num_positions = input[0, 0].numel()
        if self.spans.group is None:
            return self._by_piece(input)
        output, means, variances = _ExchangedNorm.apply(input, self.weight, self.bias, self.eps, self.spans)
        owned = [piece.row for piece in self.spans.pieces if piece.owned]
        if owned:
            rows = slice(owned[0], owned[-1] + 1)  # neighbours; a list of rows would be copied to the device
            self._pool(means[rows], variances[rows])
        return output  # type: ignore[no-any-return]

    def _by_piece(self, input: Tensor) -> Tensor:
        """Each span through torch's kernel; with a momentum of 1 it hands over the span's own mean and variance.

        Spans that are whole on a worker have one size, so all factors are plain numbers: nothing is copied to the
        device, which would wait for it.
        """
        pieces = self.spans.pieces
        latest = self.latest_for(torch.promote_types(input.dtype, torch.float32), input.device)
        if len(pieces) == 1:
            return F.batch_norm(input, latest[0, 0], latest[1, 0], self.weight, self.bias, True, 1.0, self.eps)
        means, variances = latest
        outputs = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            for part, mean, variance in zip(input.split([p.size for p in pieces]), means, variances, strict=True)
        ]
        return torch.cat(outputs)

    def latest_for(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`latest`, made anew where the layer has gone to another dtype or device."""
        if self.latest is None or self.latest.dtype is not dtype or self.latest.device != device:
            self.latest = torch.zeros((2, len(self.spans.pieces), self.num_features), dtype=dtype, device=device)
        return self.latest

    @torch.no_grad()
    def _pool(self, means: Tensor, variances: Tensor) -> None:
        """Add whole spans; `means` and biased `variances` are [spans, channels]."""
        if self.pooled is None:
            return
        means, variances = means.double(), variances.double()
        sums = torch.stack((means.sum(0), means.square().sum(0), variances.sum(0)))
        self.pooled.add_(sums, alpha=self.spans.span_size / self.spans.batch_size)


class _ExchangedNorm(torch.autograd.Function):
    """Normalise by statistics of spans that several workers share.

    Each worker contributes its pieces' sums in float64, where adding up squares cancels nothing that float32 had, so
    one all-reduce of [spans, 2C + 1] is exact for unequal shares. The gradients of weight and bias stay local: the
    engine's gradient all-reduce sums them. Formulas: Ioffe and Szegedy 2015 (arXiv 1502.03167), section 3.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, spans: Spans
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels = input.shape[1]
        table = input.new_zeros((spans.num_rows, 2 * channels + 1), dtype=torch.float64)
        for piece, part in _parts(input, spans):
            variance, mean = torch.var_mean(part, dim=_all_but_channels(part), correction=0)
            count, mean = part.numel() // channels, mean.double()
            table[piece.row, :channels] = mean * count
            table[piece.row, channels:-1] = (variance.double() + mean.square()) * count
            table[piece.row, -1].fill_(count)  # assigned, it would become a tensor of the host's first
        spans.all_reduce(table)
        count_by_row = table[:, -1:]
        means = table[:, :channels] / count_by_row
        variances = (table[:, channels:-1] / count_by_row - means.square()).clamp_min_(0)
        inverse_std = (variances + epsilon).rsqrt()
        scale = inverse_std if weight is None else inverse_std * weight.double()
        shift = torch.zeros_like(means) if bias is None else bias.double().expand_as(means)
        output = torch.empty_like(input)
        for piece, part in _parts(input, spans):
            out = output[piece.start : piece.stop]
            # centred before it is scaled: x · scale + (bias - mean · scale) would cancel what x has beyond its spread
            centred = part - _like(means[piece.row], part)
            out.copy_(torch.addcmul(_like(shift[piece.row], part), centred, _like(scale[piece.row], part)))
        ctx.save_for_backward(input, weight, means, inverse_std, count_by_row)
        ctx.spans = spans
        ctx.mark_non_differentiable(means, variances)
        return output, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, means, inverse_std, count_by_row = ctx.saved_tensors
        spans: Spans = ctx.spans
        channels = input.shape[1]
        sums = means.new_zeros((spans.num_rows, 2, channels))  # of g and of g × x_hat
        for piece, part in _parts(input, spans):
            g = gradient[piece.start : piece.stop].to(part.dtype)
            dims = _all_but_channels(part)
            sums[piece.row, 0] = g.sum(dims)
            centred = part - _like(means[piece.row], part)
            sums[piece.row, 1] = (g * centred).sum(dims).double() * inverse_std[piece.row]
        own = sums.sum(0)  # before the exchange: this worker's part of the gradients of bias and weight
        spans.all_reduce(sums)
        average = sums / count_by_row[:, :, None]
        scale = inverse_std if weight is None else inverse_std * weight.double()
        # dx = scale · (g − mean(g) − x_hat · mean(g · x_hat)), written as scale · g + slope · (x − mean) + offset
        slope = -scale * inverse_std * average[:, 1]
        offset = -scale * average[:, 0]
        input_gradient = torch.empty_like(input)
        for piece, part in _parts(input, spans):
            g = gradient[piece.start : piece.stop].to(part.dtype)
            centred = part - _like(means[piece.row], part)
            dx = torch.addcmul(_like(offset[piece.row], part), centred, _like(slope[piece.row], part))
            input_gradient[piece.start : piece.stop] = dx.addcmul_(g, _like(scale[piece.row], part))
        weight_gradient = None if weight is None else own[1].to(weight.dtype)
        bias_gradient = None if weight is None else own[0].to(weight.dtype)
        return input_gradient, weight_gradient, bias_gradient, None, None


def _parts(input: Tensor, spans: Spans) -> list[tuple[Any, Tensor]]:
    """The pieces with their samples, in float32 or float64: a half-precision sum would lose the variance."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    return [(piece, input[piece.start : piece.stop].to(dtype)) for piece in spans.pieces]


def _all_but_channels(input: Tensor) -> list[int]:
    return [0, *range(2, input.dim())]


def _like(per_channel: Tensor, input: Tensor) -> Tensor:
    """A float64 [channels] as [1, channels, 1, 1] in the type of `input`."""
    return per_channel.to(input.dtype).view(1, -1, *[1] * (input.dim() - 2))


def use_spans(model: nn.Module, spans: Spans, *, momentum: float, epsilon: float) -> nn.Module:
    """Replace every batch norm of `model` (in place) by one over spans, with the same parameters and buffers.

    Returns the model, or the replacement where the model itself is a batch norm. A layer that was built with another
    epsilon is logged: the recipe's holds.
    """
    if isinstance(model, SpanBatchNorm):
        return model
    if isinstance(model, _BatchNorm):
        if model.eps != epsilon:
            log.warning("a batch norm was built with epsilon %g; batch_norm.epsilon %g holds", model.eps, epsilon)
        return SpanBatchNorm(model, spans, momentum, epsilon)
    for name, child in model.named_children():
        setattr(model, name, use_spans(child, spans, momentum=momentum, epsilon=epsilon))
    return model


class RunningStatistics:
    """The running means and variances of all batch norms of a model, updated once a step.

    `sums` (float64 [3, total channels], zero at the start of a step) collects what the layers pool; the caller sums it
    over all workers (it rides on the step's one exchange) and hands it back to `update`.
    """

    def __init__(self, model: nn.Module, sums: Tensor | None = None) -> None:
        layers = [m for m in model.modules() if isinstance(m, SpanBatchNorm) and m.running_mean is not None]
        self.layers = layers
        self.num_channels = sum(layer.num_features for layer in layers)
        self._sizes = [layer.num_features for layer in layers]
        self._momentum = layers[0].momentum or 0.0 if layers else 0.0
        self._sums: Tensor | None = None
        self._counts: list[int] = []  # values of a channel that a span has, by layer: what `_biased` was made for
        self._biased = torch.empty(0)
        if layers and layers[0].spans.group is None:  # all layers share one `Spans`
            model.register_forward_hook(self._pool)
        if sums is not None:
            self.collect_into(sums)

    def collect_into(self, sums: Tensor) -> None:
        """Let the layers pool into `sums`, a float64 [3, num_channels] on the model's device."""
        self._sums = sums
        for layer, part in zip(self.layers, sums.split(self._sizes, dim=1), strict=True):
            layer.pooled = part
            if layer.spans.group is None:  # made now: compiled code would be compiled again for it
                layer.latest_for(
                    torch.promote_types(layer.get_buffer("running_mean").dtype, torch.float32), sums.device
                )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _pool(self, model: nn.Module, *_: Any) -> None:
        """After the forward pass of a micro-batch: add what its spans have left in the layers."""
        if not model.training or self._sums is None:
            return
        latest = [layer.latest for layer in self.layers if layer.latest is not None]
        if len(latest) < len(self.layers):
            return
        spans = self.layers[0].spans
        means, variances = torch.cat(latest, dim=2)
        counts = [spans.span_size * layer.num_positions for layer in self.layers]
        if counts != self._counts or self._biased.dtype is not means.dtype or self._biased.device != means.device:
            factors = [means.new_full((size,), (n - 1) / n) for size, n in zip(self._sizes, counts, strict=True)]
            self._biased, self._counts = torch.cat(factors), counts
        means, variances = means.double(), (variances * self._biased).double()
        sums = torch.stack((means.sum(0), means.square().sum(0), variances.sum(0)))
        self._sums.add_(sums, alpha=spans.span_size / spans.batch_size)

    @torch.no_grad()
    def update(self, sums: Tensor) -> None:
        """Move every running statistic by one step; `sums` is over all workers, float64 [3, num_channels]."""
        if not self.layers:
            return
        mean, mean_of_squares, mean_of_variances = sums
        variance = mean_of_variances + mean_of_squares - mean.square()
        counts = [layer.spans.batch_size * layer.num_positions for layer in self.layers]
        unbiased = [part * (n / max(n - 1, 1)) for part, n in zip(variance.split(self._sizes), counts, strict=True)]
        for name, new in (("running_mean", list(mean.split(self._sizes))), ("running_var", unbiased)):
            running = self._buffers(name)
            new = [value.to(old.dtype) for value, old in zip(new, running, strict=True)]
            torch._foreach_lerp_(running, new, self._momentum)
        torch._foreach_add_(self._buffers("num_batches_tracked"), 1)
        latest = [layer.latest for layer in self.layers if layer.latest is not None]
        if latest:  # torch scales what is there by 0, and 0 × NaN is NaN; not before the backward pass, which has them
            torch._foreach_zero_(latest)

    def _buffers(self, name: str) -> list[Tensor]:
        # read anew each step: moving a model to another device or dtype replaces its buffers
        return [layer.get_buffer(name) for layer in self.layers]
