"""Batch norm over spans of the global batch: the same statistics on any number of workers.

A span that lies on one worker goes through torch's own kernel (cuDNN's where there is one). A span that several workers
share costs one exchange forward and one backward, among exactly those workers. torch.nn.SyncBatchNorm refuses CPU
tensors, takes whatever each worker happens to hold for a span, and synchronises the host at every layer.

`resnet_dist.models.running_statistics` moves the running statistics, once a step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from resnet_dist.errors import RecipeError
from resnet_dist.models.spans import Piece, Spans

log = logging.getLogger(__name__)

# The forward passes that `SpanBatchNorm` can stand in for: any other may do more than to normalise.
_TORCHS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_TIMMS = "timm.layers.norm_act"  # a batch norm, then its children `drop` and `act`
_REPEATED = -1  # in place of a call's number: the call belongs to no step


class SpanBatchNorm(_BatchNorm):
    """Batch norm over spans, for inputs [share, channels, ...].

    `use_spans` makes such layers out of the batch norms of a model. They stay the same objects, with their parameters,
    buffers, hooks and mode, and instances of their own class.

    In each call of a training forward pass (`spans.recording`), `uses` gets the means and variances of the spans that
    this worker owns, [2, spans, channels], and the number of values that a sample has of each channel. Variances are
    unbiased where the spans lie on one worker (torch's kernel gives these), else biased and float64.
    """

    spans: Spans
    name: str  # in the model
    number: int  # among the layers that share `spans`
    after: tuple[str, ...]  # children that are called with the normalised input
    uses: list[tuple[Tensor, int]]  # of the running or the last forward pass
    places: dict[int, Tensor]  # where torch's kernel leaves each use: kept, as compiled code needs
    collected: Tensor | None  # what `RunningStatistics` keeps of the step, of all layers

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm takes [samples, channels, ...], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input`: this worker's share of a micro-batch in training, anything in evaluation.

        Raises RecipeError in training for another number of rows than the worker has samples, and where a span has one
        value of each channel, which has no variance.
        """
        self._check_input_dim(input)
        output = self._in_training(input) if self.training else self._in_evaluation(input)
        for child in self.after:
            output = self.get_submodule(child)(output)
        return output

    def _in_evaluation(self, input: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(input, mean, variance, self.weight, self.bias, mean is None, 0.0, self.eps)

    def _in_training(self, input: Tensor) -> Tensor:
        if input.shape[0] != self.spans.share_size:
            raise RecipeError(
                "model.name",
                f"{self.name} gets {len(input)} rows for {self.spans.share_size} samples: which sample a row belongs to"
                " is not known, and spans are made of samples",
                "batch norm of inputs [samples, channels, ...]",
            )
        num_positions = math.prod(input.shape[2:])
        if self.spans.smallest * num_positions == 1:
            raise RecipeError(
                "batch_norm.span",
                f"a span of 1 sample has one value of each channel at {self.name}, whose input has the shape"
                f" {list(input.shape)}: one value has no variance",
                "a span of 2 samples or more, or a larger data.resolution",
            )
        return self._by_piece(input) if self.spans.group is None else self._exchanged(input)

    def _by_piece(self, input: Tensor) -> Tensor:
        """Each span through torch's kernel; with a momentum of 1 it hands over the span's own mean and variance.

        Spans that are whole on a worker have one size, so all factors are plain numbers: nothing is copied to the
        device, which would wait for it.
        """
        sizes = [piece.size for piece in self.spans.pieces]
        means: Sequence[Tensor | None] = [None] * len(sizes)
        variances = means
        if self.running_mean is not None:
            # a repeated forward pass must save as many tensors as the first: it has a place, too
            use = len(self.uses) if self.spans.recording else _REPEATED
            place = self.place_of(use, torch.promote_types(input.dtype, torch.float32), input.device)
            means, variances = place[0].unbind(), place[1].unbind()
            if self.spans.recording:
                self.uses.append((place, math.prod(input.shape[2:])))
        if len(sizes) == 1:
            return F.batch_norm(input, means[0], variances[0], self.weight, self.bias, True, 1.0, self.eps)
        outputs = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            for part, mean, variance in zip(input.split(sizes), means, variances, strict=True)
        ]
        return torch.cat(outputs)

    def place_of(self, use: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Where torch's kernel leaves the statistics of the layer's `use`-th call in a forward pass, from 0."""
        place = self.places.get(use)
        if place is None or place.dtype is not dtype or place.device != device:
            place = torch.zeros((2, len(self.spans.pieces), self.num_features), dtype=dtype, device=device)
            self.places[use] = place
        return place

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _exchanged(self, input: Tensor) -> Tensor:
        output, moments = _ExchangedNorm.apply(input, self.weight, self.bias, self.eps, self.spans, self.number)
        owned = [number for number, piece in enumerate(self.spans.pieces) if piece.owned]
        if self.spans.recording and self.running_mean is not None:
            # neighbours, or none; a list of numbers would be copied to the device
            rows = slice(owned[0], owned[-1] + 1) if owned else slice(0)
            self.uses.append((moments[rows].transpose(0, 1), math.prod(input.shape[2:])))
        return output  # type: ignore[no-any-return]


class _ExchangedNorm(torch.autograd.Function):
    """Normalise by statistics of spans that several workers share.

    Each worker contributes the mean and the variance of its pieces, in float64. The gradients of weight and bias stay
    local: the engine's gradient all-reduce sums them. Formulas: Ioffe and Szegedy 2015 (arXiv 1502.03167), section 3.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, spans: Spans, layer: int
    ) -> tuple[Tensor, Tensor]:
        own = input.new_zeros((len(spans.pieces), 2, input.shape[1]), dtype=torch.float64)
        for number, _, part in _parts(input, spans):
            own[number, 1], own[number, 0] = torch.var_mean(part, dim=_all_but_channels(part), correction=0)
        moments = spans.moments(layer, own)
        means, variances = moments.unbind(1)
        inverse_std = (variances + epsilon).rsqrt()
        scale = inverse_std if weight is None else inverse_std * weight.double()
        shift = torch.zeros_like(means) if bias is None else bias.double().expand_as(means)
        output = torch.empty_like(input)
        for number, piece, part in _parts(input, spans):
            out = output[piece.start : piece.stop]
            # centred before it is scaled: x · scale + (bias - mean · scale) would cancel what x has beyond its spread
            centred = part - _like(means[number], part)
            out.copy_(torch.addcmul(_like(shift[number], part), centred, _like(scale[number], part)))
        ctx.save_for_backward(input, weight, means, inverse_std)
        ctx.spans, ctx.layer = spans, layer
        ctx.mark_non_differentiable(moments)
        return output, moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, means, inverse_std = ctx.saved_tensors
        spans: Spans = ctx.spans
        own = means.new_zeros((len(spans.pieces), 2, input.shape[1]))  # sums of g and of g × x_hat
        for number, piece, part in _parts(input, spans):
            g = gradient[piece.start : piece.stop].to(part.dtype)
            dims = _all_but_channels(part)
            own[number, 0] = g.sum(dims)
            centred = part - _like(means[number], part)
            own[number, 1] = (g * centred).sum(dims).double() * inverse_std[number]
        average = spans.sums(ctx.layer, own) / (spans.span_size * math.prod(input.shape[2:]))
        scale = inverse_std if weight is None else inverse_std * weight.double()
        # dx = scale · (g − mean(g) − x_hat · mean(g · x_hat)), written as scale · g + slope · (x − mean) + offset
        slope = -scale * inverse_std * average[:, 1]
        offset = -scale * average[:, 0]
        input_gradient = torch.empty_like(input)
        for number, piece, part in _parts(input, spans):
            g = gradient[piece.start : piece.stop].to(part.dtype)
            centred = part - _like(means[number], part)
            dx = torch.addcmul(_like(offset[number], part), centred, _like(slope[number], part))
            input_gradient[piece.start : piece.stop] = dx.addcmul_(g, _like(scale[number], part))
        total = own.sum(0)  # this worker's part of the gradients of bias and weight
        weight_gradient = None if weight is None else total[1].to(weight.dtype)
        bias_gradient = None if weight is None else total[0].to(weight.dtype)
        return input_gradient, weight_gradient, bias_gradient, None, None, None


def _parts(input: Tensor, spans: Spans) -> list[tuple[int, Piece, Tensor]]:
    """The pieces with their samples, in float32 or float64: a half-precision sum would lose the variance."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    return [(number, p, input[p.start : p.stop].to(dtype)) for number, p in enumerate(spans.pieces)]


def _all_but_channels(input: Tensor) -> list[int]:
    return [0, *range(2, input.dim())]


def _like(per_channel: Tensor, input: Tensor) -> Tensor:
    """A float64 [channels] as [1, channels, 1, 1] in the type of `input`."""
    return per_channel.to(input.dtype).view(1, -1, *[1] * (input.dim() - 2))


def use_spans(
    model: nn.Module, spans: Spans, *, momentum: float | None = None, epsilon: float | None = None
) -> nn.Module:
    """Make every batch norm of `model` one over spans, in place; returns the model.

    Each layer keeps its own momentum and epsilon where they are not given. Raises RecipeError for a batch norm whose
    class has a forward pass of its own (timm's BatchNormAct2d is known), or whose number of channels is not known yet.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, SpanBatchNorm):
            _convert(module, spans, name or "the model", momentum, epsilon)
    return model


def _convert(layer: _BatchNorm, spans: Spans, name: str, momentum: float | None, epsilon: float | None) -> None:
    kind = type(layer)
    is_timms = kind.forward.__module__ == _TIMMS
    if kind.forward not in _TORCHS and not is_timms:
        found = f"{name} is a {kind.__module__}.{kind.__qualname__}, a batch norm with a forward pass of its own"
        raise RecipeError("model.name", f"{found}, which would be lost", "torch's batch norms, and modules after them")
    if layer.num_features == 0 or any(map(is_lazy, layer.parameters())):
        found = f"{name} is a {kind.__qualname__} whose number of channels is not known yet"
        raise RecipeError("model.name", found, "a model that has seen an input, or a batch norm with num_features")
    if epsilon is not None and layer.eps != epsilon:
        log.warning("%s was built with epsilon %g; batch_norm.epsilon %g holds", name, layer.eps, epsilon)
    if layer.running_mean is None:
        log.warning(
            "%s keeps no running statistics (track_running_stats=False): it normalises a batch of the evaluation by"
            " itself, so that results depend on evaluate.batch_size and on the number of workers",
            name,
        )
    layer.__class__ = type(kind.__name__, (SpanBatchNorm, kind), {})
    assert isinstance(layer, SpanBatchNorm)
    layer.eps = layer.eps if epsilon is None else epsilon
    layer.momentum = layer.momentum if momentum is None else momentum
    layer.spans, layer.name, layer.number = spans, name, spans.add_layer(name, layer.num_features)
    layer.after = ("drop", "act") if is_timms else ()
    layer.uses, layer.places, layer.collected = [], {}, None
