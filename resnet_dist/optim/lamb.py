"""LAMB: Adam's update, scaled for each layer by the ratio of the norms of the weights and of the update."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from resnet_dist.optim.groups import Group
from resnet_dist.optim.layerwise import Layers, LayerwiseOptimizer

EPSILON = 1e-6


class Lamb(LayerwiseOptimizer):
    """Adam with bias correction, whose step is scaled for each layer by |w| / |update|.

    In step t:

        m <- beta1 * m + (1 - beta1) * g          v <- beta2 * v + (1 - beta2) * g^2
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay * w
        w <- w - lr * trust * u,   trust = |w| / |u|,   1 where |w| or |u| is 0

    Weight decay is decoupled from the moments, as in AdamW, and enters the trust ratio. A group with `decay` False has
    no weight decay and trust 1: there it is Adam. The state is `exp_avg` (m) and `exp_avg_sq` (v), of the parameter's
    shape and dtype, and `step` (t), 0-d float32 on the parameter's device.

    Source: You et al. 2020, arXiv 1904.00962, algorithm 2, with the identity as phi; epsilon 1e-6 as in apex and TF2.

    Differences in other implementations:
    apex's FusedLAMB    clips the norm of the whole gradient to 1.0 by default; biases and norms have a trust ratio
                        where their weight decay is not 0, or everywhere with use_nvlamb.
    timm's Lamb         follows apex: max_grad_norm 1.0; a group without weight decay has trust 1 unless always_adapt.
    TF2 (add-ons)       excludes parameters from decay and from trust by regular expressions on their names; no
                        clipping. The paper's code for TF1 has no bias correction.

    >>> weight = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> weight.grad = torch.tensor([0.5, -0.5])
    >>> Lamb([weight], lr=0.1).step()  # |w| is 5; the update is the sign of g, of norm 1.414: trust is 3.5355
    >>> weight
    tensor([2.6464, 4.3536], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float | Tensor = 0.0,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        epsilon: float = EPSILON,
    ) -> None:
        """Take parameters or groups. The engine writes the `lr` of each step into the groups.

        Raises ValueError if a number is out of range.
        """
        if not isinstance(lr, Tensor) and lr < 0:
            raise ValueError(f"lr={lr} must not be negative")
        if weight_decay < 0:
            raise ValueError(f"weight_decay={weight_decay} must not be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas} must be in [0, 1)")
        if epsilon <= 0:
            raise ValueError(f"epsilon={epsilon} must be positive")
        # `capturable`: the count of steps is on the device; see `resnet_dist.engines.state`
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "epsilon": epsilon,
            "capturable": True,
        }
        super().__init__(params, defaults)

    def _step_layers(self, group: Group, weights: list[Tensor], layers: Layers) -> Tensor | None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        beta1, beta2 = group["betas"]
        first, second = self._states(weights, "exp_avg"), self._states(weights, "exp_avg_sq")
        steps = self._counts(weights)
        torch._foreach_add_(steps, 1.0)
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)

        dtype = weights[0].dtype
        count = torch.stack(steps).double()
        corrections = (1.0 - beta1**count).to(dtype).unbind(), (1.0 - beta2**count).sqrt().to(dtype).unbind()
        updates = list(torch._foreach_sqrt(second))
        torch._foreach_div_(updates, corrections[1])
        torch._foreach_add_(updates, group["epsilon"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, first)
        torch._foreach_div_(updates, corrections[0])
        if not group["decay"]:
            torch._foreach_mul_(updates, group["lr"])
            torch._foreach_sub_(weights, updates)
            return None
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        ratios = trust_ratios(*layers.squared_norms(weights, updates).sqrt())
        if pieces := layers.split(weights):
            factors = (layers.per_piece(ratios) * group["lr"]).to(dtype).unbind()
            of_pieces = layers.split(updates)
            torch._foreach_mul_(of_pieces, factors)
            torch._foreach_sub_(pieces, of_pieces)
        return ratios

    def _counts(self, weights: list[Tensor]) -> list[Tensor]:
        for weight in weights:
            if "step" not in self.state[weight]:
                self.state[weight]["step"] = torch.zeros((), device=weight.device)
        return [self.state[weight]["step"] for weight in weights]


def trust_ratios(weight_norms: Tensor, update_norms: Tensor) -> Tensor:
    """LAMB's factor for each layer: |w| / |update|, 1 where either norm is 0.

    >>> trust_ratios(torch.tensor([2.0, 0.0]), torch.tensor([4.0, 1.0]))
    tensor([0.5000, 1.0000])
    """
    ratios = weight_norms / update_norms
    return torch.where((weight_norms > 0) & (update_norms > 0), ratios, 1.0)
