"""What acts on the weights beside the loss, in a hook before the optimizer's step: L1, and decoupled weight decay.

Both are element by element, so they are also right on the flat shards of ZeRO, and both come after gradient clipping. A
step that a loss scaler skips does not call the hooks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resnet_dist.optim.groups import Group


def add_l1(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Add the gradient of factor * sum(|w|) over the groups that decay: g <- g + factor * sign(w), and sign(0) = 0.

    The groups are those of `decay_groups`. Source: Tibshirani 1996, "Regression shrinkage and selection via the lasso".

    >>> weight = torch.tensor([2.0, 0.0, -2.0], requires_grad=True)
    >>> optimizer = torch.optim.SGD([{"params": [weight], "decay": True}], lr=1.0)
    >>> add_l1(optimizer, 0.5)
    >>> weight.grad = torch.zeros(3)
    >>> optimizer.step()
    >>> weight
    tensor([ 1.5000,  0.0000, -1.5000], requires_grad=True)
    """

    @torch.no_grad()
    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            weights = _decaying(group)
            if weights:
                signs = torch._foreach_sign([weight.detach() for weight in weights])
                torch._foreach_add_([weight.grad for weight in weights if weight.grad is not None], signs, alpha=factor)

    optimizer.register_step_pre_hook(hook)


def add_decoupled_decay(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Shrink the weights of the groups that decay before each step: w <- w - lr * factor * w.

    With torch's SGD this is SGDW: the decay does not enter the momentum. The gradient is that of the weights before.
    Source: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 1, with lr = eta * alpha and, as in torch's AdamW, a
    factor that is relative to the LR.

    >>> weight = torch.tensor([2.0], requires_grad=True)
    >>> optimizer = torch.optim.SGD([{"params": [weight], "decay": True}], lr=0.5, momentum=0.9)
    >>> add_decoupled_decay(optimizer, 0.1)
    >>> weight.grad = torch.ones(1)
    >>> optimizer.step()  # 2.0 * (1 - 0.5 * 0.1) - 0.5
    >>> weight
    tensor([1.4000], requires_grad=True)
    """

    @torch.no_grad()
    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            if weights := _decaying(group):
                torch._foreach_mul_(weights, 1.0 - group["lr"] * factor)

    optimizer.register_step_pre_hook(hook)


def _decaying(group: Group) -> list[Tensor]:
    return [weight for weight in group["params"] if weight.grad is not None] if group["decay"] else []
