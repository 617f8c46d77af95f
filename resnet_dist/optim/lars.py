"""LARS: layer-wise adaptive rate scaling, with the learning rate inside or outside the momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from resnet_dist.optim.groups import Group

_ROW = 4096  # elements; float32 norms of rows this long give sums within 2e-7 of those in float64


def squared_norms(tensors: list[Tensor]) -> Tensor:
    """Sums of squares, float64 [len(tensors)], without waiting for the device.

    In float64, so that the sum over the shards of a tensor equals the result for the whole tensor.
    """
    if all(tensor.device.type == "cpu" and tensor.dtype is torch.float32 for tensor in tensors):
        return torch.stack([_squared_norm(tensor) for tensor in tensors])
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64)).square()


def _squared_norm(tensor: Tensor) -> Tensor:
    """For float32 on a CPU, where torch would first convert the whole tensor to float64, which is slow."""
    in_memory_order = tensor if tensor.dim() != 4 or tensor.is_contiguous() else tensor.permute(0, 2, 3, 1)
    flat = in_memory_order.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    squared: Tensor = torch.linalg.vector_norm(flat[whole:], dtype=torch.float64).square()
    if whole:
        squared = squared + torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1).double().square().sum()
    return squared


def trust_ratios(
    weight_norms: Tensor, gradient_norms: Tensor, *, weight_decay: float, trust_coefficient: float, epsilon: float
) -> Tensor:
    """LARS's factor for each layer, from the Euclidean norms of its weights and its gradient.

        trust = trust_coefficient * |w| / (|g| + weight_decay * |w| + epsilon),   1 where |w| or |g| is 0

    Norms and result have the same shape and dtype. Source: You et al. 2017, arXiv 1708.03888, equation 6; the value 1
    is MLPerf's.

    >>> trust_ratios(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 5.0]), weight_decay=0.5, trust_coefficient=0.1,
    ...              epsilon=0.0)
    tensor([0.1000, 1.0000])
    """
    ratios = trust_coefficient * weight_norms / (gradient_norms + weight_decay * weight_norms + epsilon)
    return torch.where((weight_norms > 0) & (gradient_norms > 0), ratios, 1.0)


def update_weights(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    ratios: Tensor | None,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    lr_in_momentum: bool,
) -> None:
    """Update `weights` and `momenta` in place by one step of LARS, or of momentum SGD if `ratios` is None.

    The tensors are whole parameters or shards of them. `ratios` are the layers' trust ratios, floating [len(weights)].
    Gradients are not changed.
    """
    scaled = list(torch._foreach_add(gradients, weights, alpha=weight_decay)) if weight_decay else gradients
    inside = learning_rate if lr_in_momentum else 1.0
    if ratios is not None:
        scaled = list(torch._foreach_mul(scaled, (ratios * inside).to(weights[0].dtype).unbind()))
        inside = 1.0
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_add_(momenta, scaled, alpha=inside)
    torch._foreach_add_(weights, momenta, alpha=-1.0 if lr_in_momentum else -learning_rate)


class Lars(torch.optim.Optimizer):
    """Momentum SGD whose step is scaled for each layer by |w| / |g|.

    With g' = g + weight_decay * w, and `trust_ratios` giving trust:

        lr_in_momentum=True     m <- momentum * m + lr * trust * g'    w <- w - m         (TensorFlow's reference)
        lr_in_momentum=False    m <- momentum * m + trust * g'         w <- w - lr * m    (PyTorch, MXNet's SGDwLARS)

    The two agree only while lr is constant: with the LR inside, the momentum buffer holds the rates of earlier steps.
    A published peak LR is valid only for the form it was tuned with.

    Groups are those of `resnet_dist.optim.decay_groups`: a group with `decay` False has neither a trust ratio nor
    weight decay, but momentum SGD of the same form. The state is one tensor per parameter, `momentum_buffer`, of its
    shape and dtype. A step never waits for the device.

    Source: You et al. 2017, arXiv 1708.03888; MLPerf training rules for epsilon, zero norms and excluded parameters.

    Differences in other implementations:
    apex's LARC     a wrapper that writes into the gradients. By default (clip=True) trust_coefficient * |w| / ... is an
                    upper bound of the LR instead of its factor; coefficient 0.02, epsilon 1e-8; no weight decay if a
                    norm is 0; batch norm and biases have trust ratios, too.
    timm's Lars     lr_in_momentum=False only; epsilon 1e-8; Nesterov, dampening and LARC's clipping as options; a group
                    has no trust ratio if its weight decay is 0, so LARS without weight decay needs a flag.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 0.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        epsilon: float = 0.0,
        lr_in_momentum: bool = True,
    ) -> None:
        """Take parameters or groups. The engine writes the `lr` of each step into the groups.

        Raises ValueError if a number is out of range.
        """
        if lr < 0 or weight_decay < 0 or epsilon < 0:
            raise ValueError(f"lr={lr}, weight_decay={weight_decay} and epsilon={epsilon} must not be negative")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1)")
        if trust_coefficient <= 0:
            raise ValueError(f"trust_coefficient={trust_coefficient} must be positive")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "epsilon": epsilon,
            "lr_in_momentum": lr_in_momentum,
            "decay": True,
        }
        super().__init__(params, defaults)

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
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        ratios = None
        if group["decay"]:
            ratios = trust_ratios(
                squared_norms(weights).sqrt(),
                squared_norms(gradients).sqrt(),
                weight_decay=group["weight_decay"],
                trust_coefficient=group["trust_coefficient"],
                epsilon=group["epsilon"],
            )
        update_weights(
            weights,
            gradients,
            [self._momentum_of(weight) for weight in weights],
            ratios,
            learning_rate=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"] if group["decay"] else 0.0,
            lr_in_momentum=group["lr_in_momentum"],
        )

    def _momentum_of(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        buffer: Tensor = state["momentum_buffer"]
        return buffer
