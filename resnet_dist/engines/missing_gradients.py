"""Gradients of 0 for parameters that the loss of a step does not depend on, for every engine and number of workers.

Torch leaves such a parameter without a gradient. One process then skips its update, ZeRO updates it with zeros, and
DistributedDataParallel refuses the next step. The gradient of a sum over samples is 0 if no sample uses the parameter,
so it is set to 0: momentum and weight decay act as for any other parameter.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_dist.errors import RecipeError

log = logging.getLogger(__name__)

_HIDES_ITS_PARAMETERS = "CheckpointFunctionBackward"  # of torch.utils.checkpoint with use_reentrant=True


class MissingGradients:
    """Gives every trainable parameter of a module a gradient. Logs each parameter that needed one once."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._logged: set[str] = set()
        self._hidden = False  # whether the last `join` could not see which parameters its loss reaches
        self._joined: list[str] = []  # by the last `join`
        self._first_joined: list[str] | None = None  # by the first one, on every worker

    def join(self, loss: Tensor) -> Tensor:
        """Return `loss` with a backward pass that reaches every trainable parameter: DDP waits for all of them.

        A graph that hides which parameters it reaches (reentrant activation checkpointing) is not changed.
        """
        found = self.unreached(loss)
        self._hidden = found is None
        self._joined = missing = found or []
        if not missing:
            return loss
        self._log(missing)
        return _WithZeros.apply(loss, *(self._parameters[name] for name in missing))  # type: ignore[no-any-return]

    def unreached(self, loss: Tensor) -> list[str] | None:
        """Return the parameters that get no gradient from `loss`; None if its graph does not show all that do."""
        reached = _reached(loss)
        return None if reached is None else [name for name, p in self._parameters.items() if id(p) not in reached]

    def check_unchanged(self) -> None:
        """Check that gradients come in the same order on all workers, for an engine that exchanges them in that order.

        Raises RecipeError if the last loss depended on other parameters than another worker's, or than the first one.
        The first call is a collective.
        """
        found = [self._joined]
        if self._first_joined is None:
            found = [self._joined] * dist.get_world_size()
            dist.all_gather_object(found, self._joined)
            self._first_joined = self._joined
        changing = {name for missing in found for name in set(missing) ^ set(self._first_joined)}
        if changing:
            raise RecipeError(
                "engine.stage",
                f"the loss depends on {min(changing)} in some steps or on some workers only. Stage 2 exchanges"
                " gradients in the order of the backward pass, which must be the same on all workers",
                "0 or 1; or engine ddp",
            )

    def check_none_hidden(self) -> None:
        """Raise RecipeError if a parameter got no gradient and `join` could not see that.

        For DDP on several workers, after the backward pass: it waits for such gradients, which never come.
        """
        missing = self._without_gradient()
        if missing and self._hidden:
            raise RecipeError(
                "model.name",
                f"the loss does not depend on {missing[0]}, which reentrant activation checkpointing hides, so that"
                " DDP waits for its gradient",
                "checkpoint(..., use_reentrant=False), or a model that uses all parameters",
            )

    def fill(self) -> None:
        """Set missing gradients to zeros, after the backward pass."""
        missing = self._without_gradient()
        for name in missing:
            self._parameters[name].grad = torch.zeros_like(self._parameters[name])
        self._log(missing)

    def _without_gradient(self) -> list[str]:
        return [name for name, parameter in self._parameters.items() if parameter.grad is None]

    def _log(self, missing: list[str]) -> None:
        new = [name for name in missing if name not in self._logged]
        if new:
            log.warning(
                "the loss does not depend on %d of %d trainable parameters (%s%s): their gradient is 0. Weight decay"
                " still moves them; remove what the model does not use, or set requires_grad to False",
                len(new),
                len(self._parameters),
                ", ".join(new[:3]),
                ", ..." if len(new) > 3 else "",
            )
        self._logged.update(new)


class _WithZeros(torch.autograd.Function):
    """Identity of the loss, whose backward pass also returns zeros for the parameters."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *map(torch.zeros_like, ctx.parameters)


def _reached(loss: Tensor) -> set[int] | None:
    """Return the ids of the tensors that get a gradient from `loss`; None if its graph does not show all of them."""
    reached: set[int] = set()
    if loss.grad_fn is None:
        return reached
    seen, waiting = {loss.grad_fn}, [loss.grad_fn]
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is None or node in seen:
                continue
            if node.name() == _HIDES_ITS_PARAMETERS:
                return None
            seen.add(node)
            waiting.append(node)
            leaf = getattr(node, "variable", None)  # of the nodes that add to a tensor's gradient
            if leaf is not None:
                reached.add(id(leaf))
    return reached
