"""Clipping by the norm of the whole gradient, in the one form that every engine uses."""

from __future__ import annotations

from torch import Tensor


def clip_scale(gradient_squared: Tensor, max_norm: float) -> Tensor:
    """What to multiply a gradient with so that its norm is at most `max_norm`; 1 where it is already.

        scale = min(1, max_norm / (norm + 1e-6))

    `gradient_squared` is the squared L2 norm of the whole gradient, 0-d, of any floating dtype; so is the result.
    A norm that is not a number gives a scale that is none: the gradient stays visibly broken. Source of the formula
    and of its 1e-6: torch.nn.utils.clip_grad_norm_.

    >>> import torch
    >>> clip_scale(torch.tensor(16.0), max_norm=2.0), clip_scale(torch.tensor(1.0), max_norm=2.0)
    (tensor(0.5000), tensor(1.))
    """
    return (max_norm / (gradient_squared.sqrt() + 1e-6)).clamp(max=1.0)
