"""Parameters that the loss of a step does not depend on: their gradient is 0, on every engine and number of workers.

Torch leaves such a parameter without a gradient. One process then skips its update, ZeRO updates it with zeros, and
DistributedDataParallel refuses the next step. The gradient of a sum over samples is 0 where no sample uses a parameter,
so 0 it is everywhere: momentum and weight decay act as for any other parameter.
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
    """Gives every trainable parameter of a module a gradient; names those that needed one, once."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._named: set[str] = set()
        self._hidden = False  # from the last `join`
        self._joined: list[str] = []  # by the last `join`
        self._always: list[str] | None = None  # by the first one, on every worker

    def join(self, loss: Tensor) -> Tensor:
        """`loss`, whose backward pass reaches every trainable parameter: DDP waits for all of them.

        A graph that hides which parameters it reaches (reentrant activation checkpointing) is left as it is.
        """
        found = _reached(loss)
        self._hidden = found is None
        missing = [] if found is None else _others(self._module, found)
        self._joined = missing
        if not missing:
            return loss
        self._name(missing)
        return _WithZeros.apply(loss, *(self._parameters[name] for name in missing))  # type: ignore[no-any-return]

    def check_unchanged(self) -> None:
        """For an engine that exchanges gradients in the order in which they come: it must be the same on all workers.

        Raises RecipeError where the last loss depended on other parameters than another worker's, or than the first
        one. The first call is a collective.
        """
        found = [self._joined]
        if self._always is None:
            found = [self._joined for _ in range(dist.get_world_size())]
            dist.all_gather_object(found, self._joined)
            self._always = self._joined
        changing = {name for missing in found for name in set(missing) ^ set(self._always)}
        if changing:
            raise RecipeError(
                "engine.stage",
                f"the loss depends on {min(changing)} in some steps or on some workers only, and stage 2 exchanges"
                " gradients as they come, which must be in the same order on all workers",
                "0 or 1; or engine ddp",
            )

    def check_none_hidden(self) -> None:
        """For DDP on several workers, after the backward pass: it has waited in vain for gradients that do not come.

        Raises RecipeError where `join` could not see that a parameter would get none.
        """
        missing = self._without_gradient()
        if missing and self._hidden:
            raise RecipeError(
                "model.name",
                f"the loss does not depend on {missing[0]}, which reentrant activation checkpointing hides: several"
                " workers wait for its gradient",
                "checkpoint(..., use_reentrant=False), or parameters that are all used",
            )

    def fill(self) -> None:
        """After the backward pass: zeros for parameters that have no gradient."""
        missing = self._without_gradient()
        for name in missing:
            self._parameters[name].grad = torch.zeros_like(self._parameters[name])
        if missing:
            self._name(missing)

    def _without_gradient(self) -> list[str]:
        return [name for name, parameter in self._parameters.items() if parameter.grad is None]

    def _name(self, missing: list[str]) -> None:
        new = [name for name in missing if name not in self._named]
        if new:
            log.warning(
                "the loss does not depend on %d of %d trainable parameters (%s%s): their gradient is 0. Weight decay"
                " still moves them; remove what the model does not use, or set requires_grad to False",
                len(new),
                len(self._parameters),
                ", ".join(new[:3]),
                ", ..." if len(new) > 3 else "",
            )
        self._named.update(new)


class _WithZeros(torch.autograd.Function):
    """The loss; backward, also zeros for the parameters given with it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *map(torch.zeros_like, ctx.parameters)


def unreached(module: nn.Module, loss: Tensor) -> list[str]:
    """The trainable parameters that get no gradient from `loss`; none where its graph does not show them all."""
    found = _reached(loss)
    return [] if found is None else _others(module, found)


def _others(module: nn.Module, found: set[int]) -> list[str]:
    return [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in found]


def _reached(loss: Tensor) -> set[int] | None:
    """The ids of the tensors that get a gradient from `loss`; None where its graph does not show all of them."""
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
