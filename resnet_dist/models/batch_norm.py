"""Batch norm over spans of the global batch, with the same statistics on any number of workers.

A span on one worker uses torch's own kernel (cuDNN's if available). A span on several workers costs one exchange in the
forward and one in the backward pass, between those workers only. torch.nn.SyncBatchNorm rejects CPU tensors, normalises
over all samples of all workers, makes the host wait for the device in every layer, and interrupts the graphs of
torch.compile.

`resnet_dist.models.span_norm` normalises several spans on a worker, and spans on several workers.

`resnet_dist.models.running_statistics` updates the running statistics, once per step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from resnet_dist.errors import RecipeError
from resnet_dist.models.span_norm import normalise_several, normalise_shared, sums_dtype
from resnet_dist.models.spans import Spans

log = logging.getLogger(__name__)

# The forward methods that `SpanBatchNorm` can replace. Others may do more than normalise.
_TORCHS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_TIMMS = "timm.layers.norm_act"  # batch norm, followed by its children `drop` and `act`
_REPEATED = -1  # instead of a call's number: a repeated forward pass, which belongs to no step


class SpanBatchNorm(_BatchNorm):
    """Batch norm over spans, for inputs [samples, channels, ...].

    `use_spans` converts the batch norms of a model to such layers. They remain the same objects, with their parameters,
    buffers, hooks and mode, and instances of their original class.

    Each call in a training forward pass (`spans.recording`) appends to `uses` the means and variances of the spans that
    this worker owns, [2, spans, channels], and the number of values per sample and channel. For spans on one worker
    these are torch's unbiased variances. For spans on several workers they are the result of `Spans.moments`: float64,
    with 1 / sqrt(biased variance + epsilon) instead of the variances.
    """

    spans: Spans
    name: str  # in the model
    number: int  # of the layer in `spans`
    after: tuple[str, ...]  # children that are applied to the normalised input
    uses: list[tuple[Tensor, int]]  # of the current or the last forward pass, see above
    places: dict[int, Tensor]  # outputs of torch's kernel by number of the call: kept, as compiled code requires
    collected: Tensor | None  # buffer of `RunningStatistics` for the step, shared by all layers

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm expects [samples, channels, ...], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input`: in training, this worker's part of a micro-batch; in evaluation, any batch.

        In training, raises RecipeError if the number of rows is not the worker's number of samples, or if a span has a
        single value per channel, which has no variance.
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
        if input.shape[0] != self.spans.num_samples:
            raise RecipeError(
                "model.name",
                f"{self.name} gets {len(input)} rows for {self.spans.num_samples} samples: spans consist of samples,"
                " and the sample of a row is unknown",
                "batch norm of inputs [samples, channels, ...]",
            )
        num_positions = math.prod(input.shape[2:])
        if self.spans.smallest * num_positions == 1 and self.spans.counts is None:
            raise RecipeError(
                "batch_norm.span",
                f"a span of 1 sample has one value per channel at {self.name}, whose input has the shape"
                f" {list(input.shape)}: one value has no variance",
                "a span of 2 samples or more, or a larger data.resolution",
            )
        return self._by_slice(input) if self.spans.group is None else self._exchanged(input)

    def _by_slice(self, input: Tensor) -> Tensor:
        """Normalise each span with torch's kernel, which with a momentum of 1 returns the span's mean and variance.

        All spans have one size here, unless samples are left out, so all factors are Python numbers and no tensor is
        copied to the device.
        """
        sizes = [span_slice.size for span_slice in self.spans.slices]
        means: Sequence[Tensor | None] = [None] * len(sizes)
        variances = means
        if self.running_mean is not None:
            # a repeated forward pass must save as many tensors as the first, so it needs a place, too
            use = len(self.uses) if self.spans.recording else _REPEATED
            place = self.place_of(use, sums_dtype(input), input.device)
            means, variances = place[0].unbind(), place[1].unbind()
            if self.spans.recording:
                self.uses.append((place, math.prod(input.shape[2:])))
        if self.spans.counts is not None:
            parts = zip(input.split(sizes), means, variances, strict=True)
            return torch.cat([self._of_uneven_span(*part) for part in parts])
        if len(sizes) == 1:
            return F.batch_norm(input, means[0], variances[0], self.weight, self.bias, True, 1.0, self.eps)
        return normalise_several(input, self.weight, self.bias, means, variances, self.eps)

    def _of_uneven_span(self, part: Tensor, mean: Tensor | None, variance: Tensor | None) -> Tensor:
        """Normalise what is left of a span. Torch's kernel refuses a single value per channel, or none."""
        if part[:, :1].numel() > 1:
            return F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        if mean is not None and variance is not None:
            # `data`: autograd has saved the tensor of which these are rows, for the other spans
            mean.data.copy_(part.detach().sum(_all_but_channels(part)))
            variance.data.zero_()
        output = part * 0  # a value minus its mean
        if self.weight is not None:
            output = output * _like(self.weight, output)
        if self.bias is not None:
            output = output + _like(self.bias, output)
        return output

    def place_of(self, use: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The output of torch's kernel for the statistics of call number `use` (from 0) in a forward pass."""
        place = self.places.get(use)
        if place is None or place.dtype is not dtype or place.device != device:
            place = torch.zeros((2, len(self.spans.slices), self.num_features), dtype=dtype, device=device)
            self.places[use] = place
        return place

    def _exchanged(self, input: Tensor) -> Tensor:
        output, moments = normalise_shared(input, self.weight, self.bias, self.eps, self.spans, self.number)
        if self.spans.recording and self.running_mean is not None:
            # a slice (owned spans are adjacent): a list of numbers would be copied to the device
            owned = [number for number, span_slice in enumerate(self.spans.slices) if span_slice.owned]
            rows = slice(owned[0], owned[-1] + 1) if owned else slice(0)
            self.uses.append((moments[:, rows], math.prod(input.shape[2:])))
        return output


def _all_but_channels(input: Tensor) -> list[int]:
    return [0, *range(2, input.dim())]


def _like(per_channel: Tensor, input: Tensor) -> Tensor:
    """[channels] as [1, channels, 1, 1] in the dtype of `input`."""
    return per_channel.to(input.dtype).view(1, -1, *[1] * (input.dim() - 2))


def use_spans(
    model: nn.Module, spans: Spans, *, momentum: float | None = None, epsilon: float | None = None
) -> nn.Module:
    """Convert every batch norm of `model` to one over spans, in place; returns the model.

    `momentum` and `epsilon` of None keep each layer's own. Raises RecipeError for a batch norm whose class has another
    forward method than torch's (timm's BatchNormAct2d is supported), or whose number of channels is not known yet.
    """
    layers = {
        name or "the model": module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, SpanBatchNorm)
    }
    for key, attribute, wanted in (("epsilon", "eps", epsilon), ("momentum", "momentum", momentum)):
        own = {name: getattr(layer, attribute) for name, layer in layers.items()}
        replaced = [f"{value} of {name}" for name, value in own.items() if wanted not in (None, value)]
        if replaced:
            text = "batch_norm.%s %s replaces that of %d of %d batch norms, for example %s"
            log.warning(text, key, wanted, len(replaced), len(layers), replaced[0])
    without = [name for name, layer in layers.items() if layer.running_mean is None]
    if without:
        log.warning(
            "%d of %d batch norms have no running statistics (track_running_stats=False), for example %s: in evaluation"
            " they use the statistics of each batch, so results depend on evaluate.batch_size and on the number of"
            " workers",
            len(without),
            len(layers),
            without[0],
        )
    for name, layer in layers.items():
        _convert(layer, spans, name, momentum, epsilon)
    return model


def _convert(layer: _BatchNorm, spans: Spans, name: str, momentum: float | None, epsilon: float | None) -> None:
    kind = type(layer)
    is_timms = kind.forward.__module__ == _TIMMS
    if kind.forward not in _TORCHS and not is_timms:
        found = f"{name} is a {kind.__module__}.{kind.__qualname__}, a batch norm with its own forward method"
        raise RecipeError("model.name", f"{found}, which would be lost", "torch's batch norms, and modules after them")
    if layer.num_features == 0 or any(map(is_lazy, layer.parameters())):
        found = f"{name} is a {kind.__qualname__} whose number of channels is not known yet"
        raise RecipeError("model.name", found, "a model that has seen an input, or a batch norm with num_features")
    layer.__class__ = type(kind.__name__, (SpanBatchNorm, kind), {})
    assert isinstance(layer, SpanBatchNorm)
    layer.eps = layer.eps if epsilon is None else epsilon
    layer.momentum = layer.momentum if momentum is None else momentum
    layer.spans, layer.name, layer.number = spans, name, spans.add_layer(name, layer.num_features)
    layer.after = ("drop", "act") if is_timms else ()
    layer.uses, layer.places, layer.collected = [], {}, None
