"""What LARS and LAMB share: a step that is scaled for each layer by a ratio of norms, on whole tensors or on shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from resnet_dist.optim.groups import Group

_ROW = 4096  # elements; float32 norms of rows about this long give sums within 3e-7 of those in float64


def squared_norms(tensors: list[Tensor]) -> Tensor:
    """Sums of squares, float64 [len(tensors)], without waiting for the device.

    In float64, so that the sum over the shards of a tensor equals the result for the whole tensor.
    """
    return torch.stack(torch._foreach_norm(list(map(_shorter, tensors)), 2, dtype=torch.float64)).square()


def _shorter(tensor: Tensor) -> Tensor:
    """A tensor of the same norm that is shorter, if `tensor` is long, float32 and on a CPU: else `tensor`.

    There torch first converts the whole tensor to float64, which is slow. Instead, each row becomes its norm.
    """
    num = tensor.numel()
    if num <= _ROW or tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
        return tensor
    if tensor.dim() > 1 and num <= 2 * _ROW * tensor.shape[0]:
        return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())))  # type: ignore[no-any-return]
    in_memory_order = tensor if tensor.dim() != 4 or tensor.is_contiguous() else tensor.permute(0, 2, 3, 1)
    flat = in_memory_order.reshape(-1)
    whole = num // _ROW * _ROW
    return torch.cat((torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1), flat[whole:]))


class Layers(Protocol):
    """How the parameters of a group are stored: as whole tensors, or as shards of one worker's flat tensor."""

    def split(self, tensors: list[Tensor]) -> list[Tensor]:
        """The pieces on this worker, each of one parameter, of tensors that are stored like the group's parameters."""
        ...

    def squared_norms(self, *tensors: list[Tensor]) -> Tensor:
        """Sums of squares of whole parameters, float64 [len(tensors), parameters]. May be a collective."""
        ...

    def per_piece(self, values: Tensor) -> Tensor:
        """Of `values` [parameters], the one of each piece's parameter: [pieces]."""
        ...


class WholeLayers:
    """Parameters that are whole on this worker: every piece is one."""

    def split(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors themselves."""
        return tensors

    def squared_norms(self, *tensors: list[Tensor]) -> Tensor:
        """Sums of squares, float64 [len(tensors), parameters]."""
        return torch.stack([squared_norms(of_one_kind) for of_one_kind in tensors])

    def per_piece(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values


_WHOLE = WholeLayers()


class LayerwiseOptimizer(torch.optim.Optimizer):
    """Base of optimizers whose step has a factor for each layer, its trust ratio.

    Groups are those of `resnet_dist.optim.decay_groups`: a group with `decay` False has neither trust ratios nor weight
    decay. The `lr` of a group may be a number or a 0-d tensor on the parameters' device; with a tensor, a step can be
    captured in a CUDA graph, since it never waits for the device.

    A group may be a worker's flat shard of its parameters, as under ZeRO: `bind` says which. Groups may be stepped one
    by one.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], defaults: dict[str, Any]) -> None:
        super().__init__(params, {**defaults, "decay": True})
        self._layers: dict[Tensor, Layers] = {}
        self._ratios: dict[Tensor, Tensor] = {}  # by the first parameter of a group

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_layers", {})  # copies have none of the attributes that torch does not know
        self.__dict__.setdefault("_ratios", {})

    def bind(self, flat: Tensor, layers: Layers) -> None:
        """Declare that `flat`, a group's only parameter, holds shards. For every group, before the first step."""
        self._layers[flat] = layers

    def last_trust_ratios(self) -> Tensor:
        """The trust ratios of the last step, float64 [parameters with weight decay], in the order of the groups.

        Without those that have no gradient. On the device, the same on every worker. Empty before the first step.
        """
        return torch.cat(list(self._ratios.values())) if self._ratios else torch.empty(0, dtype=torch.float64)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if weights:
                self._step_group(group, weights)
        return loss

    def _step_group(self, group: Group, weights: list[Tensor]) -> None:
        layers = self._layers.get(weights[0], _WHOLE)
        if not group["decay"]:
            self._step_layers(group, weights, layers)
            return
        # One layer after the other on a CPU, so that the update finds it in the cache, where its norms have put it.
        one_by_one = layers is _WHOLE and weights[0].device.type == "cpu"
        parts = [[weight] for weight in weights] if one_by_one else [weights]
        ratios = [self._step_layers(group, part, layers) for part in parts]
        self._ratios[group["params"][0]] = torch.cat([of_part for of_part in ratios if of_part is not None])

    def _step_layers(self, group: Group, weights: list[Tensor], layers: Layers) -> Tensor | None:
        """Update some parameters of a group; return their trust ratios, float64 [parameters], None without decay."""
        raise NotImplementedError

    def _states(self, weights: Sequence[Tensor], name: str) -> list[Tensor]:
        """The states of this name, of the parameters' shapes, which begin with zeros."""
        states = []
        for weight in weights:
            state = self.state[weight]
            if name not in state:
                state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            states.append(state[name])
        return states


def last_trust_ratios(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """The trust ratios of the last step, float64 [parameters with weight decay]; None for optimizers without them."""
    return optimizer.last_trust_ratios() if isinstance(optimizer, LayerwiseOptimizer) else None


def add_scaled(tensors: list[Tensor], others: list[Tensor], factor: float | Tensor) -> None:
    """tensors += factor * others, in place. A factor on a device stays there.

    >>> add_scaled(ones := [torch.ones(2)], [torch.ones(2)], torch.tensor(-0.5))
    >>> ones
    [tensor([0.5000, 0.5000])]
    """
    if isinstance(factor, Tensor):
        torch._foreach_add_(tensors, torch._foreach_mul(others, factor.to(others[0].dtype)))
    else:
        torch._foreach_add_(tensors, others, alpha=factor)
