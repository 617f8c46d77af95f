"""Clipping by the norm of the whole gradient, as every engine does it."""

from __future__ import annotations

import torch
from torch import Tensor


def clip_scale(gradient_squared: Tensor, max_norm: float) -> Tensor:
    """Return the factor that makes the norm of a gradient at most `max_norm`; 1 if it already is.

        scale = min(1, max_norm / (norm + 1e-6))

    `gradient_squared` is the squared L2 norm of the whole gradient, 0-d, of any floating dtype. The result
    has the same shape and dtype. A NaN norm gives a NaN scale, so the gradient stays non-finite.
    Source of the formula and of its 1e-6: torch.nn.utils.clip_grad_norm_.

    >>> import torch
    >>> clip_scale(torch.tensor(16.0), max_norm=2.0), clip_scale(torch.tensor(1.0), max_norm=2.0)
    (tensor(0.5000), tensor(1.))
    """
    return (max_norm / (gradient_squared.sqrt() + 1e-6)).clamp(max=1.0)


def clip(gradients: list[Tensor], gradient_squared: Tensor, max_norm: float) -> None:
    """Scale `gradients`, which are (part of) the gradient, in place, so that its norm is at most `max_norm`."""
    torch._foreach_mul_(gradients, clip_scale(gradient_squared, max_norm).to(gradients[0].dtype))
