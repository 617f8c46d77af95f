"""LARS: layer-wise adaptive rate scaling, with the learning rate inside or outside the momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from resnet_dist.optim.groups import Group
from resnet_dist.optim.layerwise import Layers, LayerwiseOptimizer, add_scaled


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
    learning_rate: float | Tensor,
    momentum: float,
    weight_decay: float,
    lr_in_momentum: bool,
    nesterov: bool = False,
) -> None:
    """Update `weights` and `momenta` in place by one step of LARS, or of momentum SGD if `ratios` is None.

    The tensors are whole parameters or shards of them. `ratios` are the layers' trust ratios, floating [len(weights)].
    Gradients are not changed.
    """
    scaled = list(torch._foreach_add(gradients, weights, alpha=weight_decay)) if weight_decay else gradients
    inside = learning_rate if lr_in_momentum else 1.0
    outside = 1.0 if lr_in_momentum else learning_rate
    if ratios is not None:
        scaled = list(torch._foreach_mul(scaled, (ratios * inside).to(weights[0].dtype).unbind()))
        inside = 1.0
    torch._foreach_mul_(momenta, momentum)
    add_scaled(momenta, scaled, inside)
    if nesterov:
        add_scaled(weights, scaled, -outside * inside)
        outside = outside * momentum
    add_scaled(weights, momenta, -outside)


def update_fused(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    ratios: Tensor | None,
    *,
    learning_rate: float | Tensor,
    momentum: float,
    weight_decay: float,
    lr_in_momentum: bool,
) -> None:
    """`update_weights` for float32 on a CPU, without Nesterov momentum: each tensor is read and written once.

    Torch's fused SGD computes m <- momentum * m + (1 - dampening) * (g + weight_decay * w), w <- w - lr * m, so the
    trust ratio can be passed as its dampening. `momentum` must not be 0: without it, torch ignores the dampening.
    """
    rate = float(learning_rate)
    inside, outside = (rate, 1.0) if lr_in_momentum else (1.0, rate)
    factors = [1.0] * len(weights) if ratios is None else ratios.tolist()
    for weight, gradient, state, factor in zip(weights, gradients, momenta, factors, strict=True):
        sgd(
            [weight],
            [gradient],
            [state],
            fused=True,
            foreach=False,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=outside,
            dampening=1.0 - factor * inside,
            nesterov=False,
            maximize=False,
        )


class Lars(LayerwiseOptimizer):
    """Momentum SGD whose step is scaled for each layer by |w| / |g|.

    With u = trust * (g + weight_decay * w), and `trust_ratios` giving trust:

        lr_in_momentum=True     m <- momentum * m + lr * u      w <- w - m          (TensorFlow's reference)
            nesterov                                            w <- w - (momentum * m + lr * u)
        lr_in_momentum=False    m <- momentum * m + u           w <- w - lr * m     (PyTorch, MXNet's SGDwLARS)
            nesterov                                            w <- w - lr * (momentum * m + u)

    The two agree only while lr is constant: with the LR inside, the momentum buffer holds the rates of earlier steps.
    A published peak LR is valid only for the form it was tuned with.

    A group with `decay` False has neither a trust ratio nor weight decay, but momentum SGD of the same form. The state
    is one tensor per parameter, `momentum_buffer`, of its shape and dtype. `fused`: on a CPU, use the kernel of torch's
    fused SGD, which is faster; it needs float32 and a momentum above 0, and there is none for Nesterov momentum.

    Source: You et al. 2017, arXiv 1708.03888; MLPerf training rules for epsilon, zero norms and excluded parameters;
    Nesterov momentum as in Keras's SGD (LR inside) and torch.optim.SGD (LR outside).

    Differences in other implementations:
    apex's LARC     a wrapper that writes into the gradients. By default (clip=True) trust_coefficient * |w| / ... is an
                    upper bound of the LR instead of its factor; coefficient 0.02, epsilon 1e-8; no weight decay if a
                    norm is 0; batch norm and biases have trust ratios, too.
    timm's Lars     lr_in_momentum=False only; epsilon 1e-8; dampening and LARC's clipping as options; a group has no
                    trust ratio if its weight decay is 0, so LARS without weight decay needs a flag.
    TF2's           MLPerf's reference (lars_optimizer.py): lr_in_momentum=True only; parameters are left out by their
                    names, and have the plain LR.

    >>> weight = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> weight.grad = torch.tensor([0.0, 1.0])
    >>> Lars([weight], lr=0.1, trust_coefficient=0.5).step()  # |w| is 5 and |g| is 1: trust is 2.5
    >>> weight
    tensor([3.0000, 3.7500], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float | Tensor = 0.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        epsilon: float = 0.0,
        lr_in_momentum: bool = True,
        nesterov: bool = False,
        fused: bool = False,
    ) -> None:
        """Take parameters or groups. The engine writes the `lr` of each step into the groups.

        Raises ValueError if a number is out of range.
        """
        if not isinstance(lr, Tensor) and lr < 0:
            raise ValueError(f"lr={lr} must not be negative")
        if weight_decay < 0 or epsilon < 0:
            raise ValueError(f"weight_decay={weight_decay} and epsilon={epsilon} must not be negative")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1)")
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        if trust_coefficient <= 0:
            raise ValueError(f"trust_coefficient={trust_coefficient} must be positive")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "epsilon": epsilon,
            "lr_in_momentum": lr_in_momentum,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)
        self._fused = fused

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_fused", False)
        for group in self.param_groups:
            group.setdefault("nesterov", False)  # states of earlier versions have none

    def _step_layers(self, group: Group, weights: list[Tensor], layers: Layers) -> Tensor | None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        ratios = None
        if group["decay"]:
            weight_norms, gradient_norms = layers.squared_norms(weights, gradients).sqrt()
            ratios = trust_ratios(
                weight_norms,
                gradient_norms,
                weight_decay=group["weight_decay"],
                trust_coefficient=group["trust_coefficient"],
                epsilon=group["epsilon"],
            )
        momenta = self._states(weights, "momentum_buffer")  # even if this worker has no pieces: all have the same
        pieces = layers.split(weights)
        if pieces:
            fused = self._fused and group["momentum"] > 0 and not group["nesterov"]
            update: Callable[..., None] = update_fused if fused else partial(update_weights, nesterov=group["nesterov"])
            update(
                pieces,
                layers.split(gradients),
                layers.split(momenta),
                None if ratios is None else layers.per_piece(ratios),
                learning_rate=group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"] if group["decay"] else 0.0,
                lr_in_momentum=group["lr_in_momentum"],
            )
        return ratios
