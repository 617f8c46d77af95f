"""What goes on in each layer, every N steps: norms of weights and gradients, trust ratios, spread of activations.

The sums over samples are float64, over all micro-batches of the step and all workers, so the values do not depend on
how a batch is split. Steps in between cost nothing. A step that is recorded makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from resnet_dist.optim.layerwise import squared_norms
from resnet_dist.telemetry.step_totals import StepSums

# Columns of the sums of a layer's outputs, and of the gradients of the loss with respect to them.
_OUTPUT, _GRADIENT = slice(0, 3), slice(3, 6)
_LAYERS = (_ConvNd, nn.Linear)

LossSum = Callable[[Tensor, Tensor], Tensor]


class Layers(Protocol):
    """Records what goes on in the layers in some steps."""

    def begin(self, step: int) -> None:
        """Before step number `step`, 1 the first."""
        ...

    def reduce(self) -> None:
        """Sum over all workers, after the backward pass. A collective."""
        ...

    def end(self, step: int, sums: StepSums) -> Mapping[str, object] | None:
        """The record of the step, on every worker; None if it is not recorded."""
        ...


class NoLayers:
    """Records nothing."""

    def begin(self, step: int) -> None:
        """Do nothing."""

    def reduce(self) -> None:
        """Do nothing."""

    def end(self, step: int, sums: StepSums) -> None:
        """Return None."""


class LayerStatistics:
    """Records of kind "layers": at step 1, and every `every_steps` steps.

    For each convolution, each linear layer and each other parameter with weight decay, by name, what there is of

        weight_norm             L2 norm of the weight, before the update
        gradient_norm           L2 norm of the gradient of the mean loss over the batch, before clipping
        trust_ratio             the factor of the layer's step, with lars and lamb
        activation_std          standard deviation of all outputs
        output_gradient_std     standard deviation of the gradient of the mean loss with respect to the outputs

    A layer that is frozen has no norms; without `gradient_squares` of the engine, there is no gradient_norm. Outputs
    are those of the layer itself, before batch norm and ReLU, of the samples of all workers.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, every_steps: int, batch_size: int
    ) -> None:
        self._modules = {name: module for name, module in model.named_modules() if isinstance(module, _LAYERS)}
        self._every, self._batch_size = every_steps, batch_size
        weights = {f"{name}.weight": name for name in self._modules}
        self._device = next(model.parameters()).device
        # A user's optimizer may have other groups than it was given; an engine may replace their parameters later.
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._groups = [
            (bool(group.get("decay", True)), [names[id(one)] for one in group["params"]], list(group["params"]))
            for group in optimizer.param_groups
        ]
        self._names = {name: weights.get(name, name) for _, names, _ in self._groups for name in names}
        self._sums = torch.zeros(0)
        self._weight_norms: list[float] = []
        self._handles: list[Any] = []
        self._is_recorded = False  # the present step
        self._scale: Tensor | None = None

    def loss_sum(self, loss_sum: LossSum) -> LossSum:
        """`loss_sum`, observed: the gradient that it gets is the factor by which an engine scales the loss."""

        def observed(logits: Tensor, labels: Tensor) -> Tensor:
            loss = loss_sum(logits, labels)
            if self._is_recorded and loss.requires_grad:
                loss.register_hook(self._take_scale)
            return loss

        return observed

    def begin(self, step: int) -> None:
        """Observe the layers, if the step is recorded."""
        if step != 1 and step % self._every:
            return
        self._is_recorded = True
        self._sums = torch.zeros((len(self._modules), 6), dtype=torch.float64, device=self._device)
        for number, module in enumerate(self._modules.values()):
            self._handles.append(module.register_forward_hook(self._observe(number)))
        decaying = [weight.detach() for decay, _, weights in self._groups if decay for weight in weights]
        self._weight_norms = squared_norms(decaying).sqrt().tolist() if decaying else []

    def reduce(self) -> None:
        """Sum over all workers, if the step is recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._is_recorded and dist.is_initialized():
            dist.all_reduce(self._sums)

    def end(self, step: int, sums: StepSums) -> Mapping[str, object] | None:
        """The record of the step, if it is recorded."""
        if not self._is_recorded:
            return None
        self._is_recorded = False
        layers: dict[str, dict[str, float]] = {}
        for name, norm in zip(self._decaying(), self._weight_norms, strict=True):
            layers.setdefault(name, {})["weight_norm"] = norm
        if sums.gradient_squares is not None:
            norms = sums.gradient_squares.sqrt().tolist()
            names = [(decay, name) for decay, names, _ in self._groups for name in names]
            for (decay, name), norm in zip(names, norms, strict=True):
                if decay:
                    layers[self._names[name]]["gradient_norm"] = norm
        if sums.trust_ratios is not None and not sums.skipped:
            for name, ratio in zip(self._decaying(), sums.trust_ratios.tolist(), strict=True):
                layers[name]["trust_ratio"] = ratio
        for name, row in zip(self._modules, self._sums.tolist(), strict=True):
            for key, columns in (("activation_std", _OUTPUT), ("output_gradient_std", _GRADIENT)):
                if (std := _deviation(*row[columns])) is not None:
                    layers.setdefault(name, {})[key] = std
        return {"kind": "layers", "step": step, "layers": layers}

    def _decaying(self) -> list[str]:
        return [self._names[name] for decay, names, _ in self._groups if decay for name in names]

    def _observe(self, number: int) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            # without gradients: the first pass of reentrant activation checkpointing, which is repeated
            if not (isinstance(output, Tensor) and torch.is_grad_enabled()):
                return
            self._add(number, _OUTPUT, output.detach())
            if output.requires_grad:
                output.register_hook(lambda gradient: self._add(number, _GRADIENT, gradient, self._factor()))

        return hook

    @torch.no_grad()
    def _add(self, number: int, columns: slice, values: Tensor, factor: Tensor | float = 1.0) -> None:
        row = self._sums[number, columns]
        row[0] += values.numel()
        row[1] += values.sum(dtype=torch.float64) * factor
        row[2] += torch.linalg.vector_norm(values, dtype=torch.float64).square() * factor**2

    def _take_scale(self, gradient: Tensor) -> None:
        self._scale = gradient.detach().double()

    def _factor(self) -> Tensor | float:
        """What makes a gradient of the engine's scaled loss one of the mean loss over the batch."""
        return 1.0 if self._scale is None else 1.0 / (self._scale * self._batch_size)


def _deviation(count: float, total: float, squares: float) -> float | None:
    """The standard deviation (of the population) of `count` values; None without values. NaN if one is not finite.

    >>> _deviation(2.0, 4.0, 10.0)  # 1 and 3
    1.0
    """
    if count == 0:
        return None
    variance = squares / count - (total / count) ** 2
    return max(variance, 0.0) ** 0.5 if variance == variance else variance
