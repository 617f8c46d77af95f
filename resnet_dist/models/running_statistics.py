"""The running means and variances of batch norm, updated once per step.

A layer's statistics are updated with all samples that it normalised in training mode in the step, as if they were one
batch: over all spans, micro-batches, workers and calls. A layer that normalised no samples (frozen, or not called) does
not change. Parts are combined as in Chan, Golub and LeVeque 1983 ("Algorithms for computing the sample
variance"): sums of squares lose precision if the mean is large.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from resnet_dist.models.batch_norm import SpanBatchNorm
from resnet_dist.models.spans import Spans


@dataclass(frozen=True)
class _Columns:
    """The columns of some layers in the collected statistics."""

    layers: tuple[int, ...]
    counts: tuple[int, ...]  # values per channel in a span, by layer
    index: Tensor | None  # int64: the columns of these layers; None: all columns, in order
    values: Tensor  # float64: `counts` by channel
    epsilons: Tensor  # float64: those of the layers by channel
    biased: Tensor  # float64: (values - 1) / values, the biased variance of a span / its unbiased variance


class _Buffers:
    """The buffers of all layers as views of two tensors, so that an update takes a few operations.

    running     [2, channels]: the running means and the running variances, the channels of all layers concatenated
    tracked     int64 [layers]: num_batches_tracked
    """

    def __init__(self, layers: Sequence[SpanBatchNorm]) -> None:
        """Replace the buffers of `layers`, which have one dtype and one device, by views with the same values."""
        self._layers = layers
        self._views: list[tuple[SpanBatchNorm, str, Tensor]] = []
        self.join()

    @torch.no_grad()
    def join(self) -> None:
        """Make all buffers views of two tensors, unless they are.

        Moving a model to another device or dtype replaces its buffers, as `load_state_dict(..., assign=True)` does.
        """
        if self._views and all(layer._buffers[name] is view for layer, name, view in self._views):
            return
        means, variances, tracked = (
            [layer.get_buffer(name) for layer in self._layers]
            for name in ("running_mean", "running_var", "num_batches_tracked")
        )
        self.running = torch.stack((torch.cat(means), torch.cat(variances)))
        self.tracked = torch.stack(tracked)
        self._views, start = [], 0
        for number, layer in enumerate(self._layers):
            stop = start + layer.num_features
            self._views += [
                (layer, "running_mean", self.running[0, start:stop]),
                (layer, "running_var", self.running[1, start:stop]),
                (layer, "num_batches_tracked", self.tracked[number]),
            ]
            start = stop
        for layer, name, view in self._views:
            setattr(layer, name, view)


class RunningStatistics:
    """The running statistics of all batch norms of a model.

    During a step it collects `count`, `mean` and `squares` (the sum of squared deviations from the mean) of the values
    that this worker's layers normalise, each float64 [num_channels], with the channels of all layers concatenated.

        statistics.sums()                      this worker's sums, to be reduced over all workers
        statistics.update(sums, all_reduce)    updates the buffers, and begins the next step

    Between steps, `measuring` and `pooled` give the statistics of other forward passes, without a change of buffers.
    """

    def __init__(self, model: nn.Module, device: torch.device | None = None) -> None:
        """Register hooks on `model` that collect the statistics. `device` is the model's; the default is the CPU."""
        self.layers = [m for m in model.modules() if isinstance(m, SpanBatchNorm) and m.running_mean is not None]
        self._prefixes = {m: f"{name}." if name else "" for name, m in model.named_modules() if m in self.layers}
        self.num_channels = sum(layer.num_features for layer in self.layers)
        self._sizes = [layer.num_features for layer in self.layers]
        self._device = torch.device("cpu") if device is None else device
        sizes = torch.tensor(self._sizes, dtype=torch.int64)
        self._layer_of = torch.arange(len(self.layers)).repeat_interleave(sizes).to(self._device)  # of each channel
        self._first_of = (sizes.cumsum(0) - sizes).to(self._device)  # the first channel of each layer
        self._collected = torch.zeros((3, self.num_channels), dtype=torch.float64, device=self._device)
        self._columns: list[_Columns] = []  # of the layers' first calls, second calls, ...
        self._momenta_of: list[float | None] = []
        self._momenta = torch.empty(0)
        self._buffers: _Buffers | None = None
        self._depth = 0  # of nested calls of the model
        self._measuring = False  # whether forward passes without gradients are collected, too
        spans = next((m.spans for m in model.modules() if isinstance(m, SpanBatchNorm)), None)
        if spans is None:
            return
        self._spans: Spans = spans  # all layers share one
        if self.layers:
            self._buffers = _Buffers(self.layers)
        for layer in self.layers:
            layer.collected = self._collected
        # Compiled code does not trace the hooks. Not decorators: those would import the compiler with this module.
        model.register_forward_pre_hook(partial(torch.compiler.disable(RunningStatistics._begin), self))
        model.register_forward_hook(partial(torch.compiler.disable(RunningStatistics._end), self), always_call=True)
        if spans.group is None:
            for layer in self.layers:  # allocated now: a later allocation would cause a recompilation
                dtype = torch.promote_types(layer.get_buffer("running_mean").dtype, torch.float32)
                layer.place_of(0, dtype, self._device)

    def _begin(self, *_: object) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        for layer in self.layers:
            layer.uses = []
        # an evaluation does not belong to a step
        self._spans.recording = torch.is_grad_enabled() or self._measuring

    @torch.no_grad()
    def _end(self, model: nn.Module, inputs: object, output: object) -> None:
        """After a forward pass: collect the statistics of its layers. `output` is None after an exception."""
        self._depth -= 1
        if self._depth > 0 or not self._spans.recording:
            return
        self._spans.recording = False
        if output is None:
            self.clear()
            return
        self._spans.end_forward(self._device)
        for use in range(max((len(layer.uses) for layer in self.layers), default=0)):
            self._add(use, [number for number, layer in enumerate(self.layers) if len(layer.uses) > use])

    def _add(self, use: int, numbers: Sequence[int]) -> None:
        """Add the statistics of call number `use` of some layers."""
        means, variances = torch.cat([self.layers[number].uses[use][0] for number in numbers], dim=2).double()
        num_spans, left = len(means), self._spans.owned_counts()
        if num_spans == 0 or (left is not None and not any(left)):
            return  # other workers own all spans of this worker, or all of its samples are left out
        columns = self._columns_of(use, numbers)
        values = columns.values  # of each channel in one span
        if self._spans.group is not None:  # not the variances, but 1 / sqrt(variance + epsilon)
            variances = (variances.pow(-2) - columns.epsilons).clamp_min(0)
        if left is None:
            if self._spans.group is None:
                variances = variances * columns.biased  # torch's kernel returns unbiased variances
            mean = means.mean(0)
            squares = values * (variances + (means - mean).square()).sum(0)
            count = values * num_spans
        else:
            count, mean, squares = self._of_uneven_spans(values / self._spans.span_size, left, means, variances)
        before = self._collected if columns.index is None else self._collected[:, columns.index]
        total = before[0] + count
        distance = mean - before[1]
        after = torch.stack(
            (
                total,
                before[1] + distance * (count / total),
                before[2] + squares + distance.square() * (before[0] * count / total),
            )
        )
        if columns.index is None:
            self._collected.copy_(after)
        else:
            self._collected[:, columns.index] = after

    def _of_uneven_spans(
        self, values: Tensor, left: Sequence[int], means: Tensor, variances: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and sum of squared deviations of spans with `left` samples: float64 [channels] each.

        `values` are those of each channel in a sample; `means` and `variances` are [spans, channels].
        """
        rows = [row for row, count in enumerate(left) if count]
        counts = torch.tensor([[left[row]] for row in rows], dtype=torch.float64).to(self._device) * values
        means, variances = means[rows], variances[rows]
        if self._spans.group is None:
            variances = variances * ((counts - 1) / counts)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        return count, mean, (counts * (variances + (means - mean).square())).sum(0)

    def _columns_of(self, use: int, numbers: Sequence[int]) -> _Columns:
        layers = tuple(numbers)
        counts = tuple(self._spans.span_size * self.layers[number].uses[use][1] for number in layers)
        newest = self._columns[use] if use < len(self._columns) else None
        if newest is not None and (newest.layers, newest.counts) == (layers, counts):
            return newest
        # created on the device: a copy from the host would wait for it
        made = [self._collected.new_full((self._sizes[n],), count) for n, count in zip(layers, counts, strict=True)]
        index = None
        if len(layers) < len(self.layers):
            starts = [0, *itertools.accumulate(self._sizes)]
            index = torch.cat([torch.arange(starts[n], starts[n + 1], device=self._device) for n in layers])
        values = torch.cat(made)
        epsilons = [self._collected.new_full((self._sizes[n],), self.layers[n].eps) for n in layers]
        self._columns[use : use + 1] = [
            _Columns(layers, counts, index, values, torch.cat(epsilons), (values - 1) / values)
        ]
        return self._columns[use]

    def sums(self) -> Tensor:
        """This worker's counts and sums of values in the step so far: float64 [2, num_channels]."""
        count, mean, _ = self._collected
        return torch.stack((count, count * mean))

    @torch.no_grad()
    def update(
        self,
        sums: Tensor,
        all_reduce: Callable[[Tensor], object] = lambda tensor: None,
        on_reduced: Callable[[], object] = lambda: None,
    ) -> None:
        """Update the running statistics, and begin the next step.

        `sums` is the result of `sums()`, summed over all workers. `all_reduce` sums a float64 [num_channels] over all
        workers in place: the squared deviations from the global mean. `on_reduced` is called after it, before a buffer
        changes.
        """
        if self._buffers is None:
            on_reduced()
            return
        moved, mean, variance = self._pooled(sums, all_reduce)
        on_reduced()
        self._buffers.join()
        running, tracked = self._buffers.running, self._buffers.tracked
        tracked.add_(moved[self._first_of])
        new = torch.stack((mean, variance)).to(running.dtype)
        after = torch.lerp(running, new, self._momenta_now(tracked).to(running.dtype))
        running.copy_(torch.where(moved, after, running))  # a layer that normalised nothing does not change
        self.clear()

    def _pooled(self, sums: Tensor, all_reduce: Callable[[Tensor], object]) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a channel has values, their mean and their unbiased variance (as torch's): [num_channels] each."""
        count, total = sums
        mean = total / count.clamp_min(1)
        own_count, own_mean, own_squares = self._collected
        squares = own_squares + own_count * (own_mean - mean).square()
        all_reduce(squares)
        return count > 0, mean, squares / (count - 1).clamp_min(1)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Collect the statistics of forward passes without gradients, between two steps; discard them at the end."""
        self._measuring = True
        try:
            yield
        finally:
            self._measuring = False
            self.clear()

    @torch.no_grad()
    def pooled(self, all_reduce: Callable[[Tensor], object] = lambda tensor: None) -> dict[str, Tensor]:
        """Mean and unbiased variance of all values collected, by name of the buffer, in its dtype.

        `all_reduce` sums a float64 tensor over all workers in place. Layers that normalised no values are left out.
        """
        sums = self.sums()
        all_reduce(sums)
        moved, mean, variance = self._pooled(sums, all_reduce)
        found: dict[str, Tensor] = {}
        for suffix, values in (("running_mean", mean), ("running_var", variance)):
            parts = zip(self.layers, values.split(self._sizes), moved.split(self._sizes), strict=True)
            for layer, value, has_values in parts:
                if has_values.all():
                    found[f"{self._prefixes[layer]}{suffix}"] = value.to(layer.get_buffer(suffix).dtype)
        return found

    def _momenta_now(self, tracked: Tensor) -> Tensor:
        """The momentum of each channel, float64 [channels]; for None, torch's cumulative average."""
        momenta = [layer.momentum for layer in self.layers]
        if momenta != self._momenta_of:
            given = zip(self._sizes, momenta, strict=True)
            made = [self._collected.new_full((size,), -1.0 if value is None else value) for size, value in given]
            self._momenta, self._momenta_of = torch.cat(made), momenta
        if None not in momenta:
            return self._momenta
        cumulative = (1 / tracked.clamp_min(1).double())[self._layer_of]
        return torch.where(self._momenta < 0, cumulative, self._momenta)

    def clear(self) -> None:
        """Discard the statistics collected since the last update.

        The outputs of torch's kernel are set to 0 as well: the kernel multiplies them by 0, and 0 × NaN is NaN.
        """
        self._collected.zero_()
        places = [place for layer in self.layers for place in layer.places.values()]
        if places:
            torch._foreach_zero_(places)
