"""Parameter groups: with and without weight decay, by factor of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.requirements import nearest_name

Group = dict[str, Any]  # a parameter group of a torch optimizer

# _NormBase is the base of every batch norm and instance norm.
NORMALISATIONS: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def decay_groups(model: nn.Module, lr_factors: Mapping[str, float] | None = None) -> list[Group]:
    """The trainable parameters in groups: with weight decay, then without, each by factor of the learning rate.

    All parameters of normalisation layers and all biases are excluded from weight decay and from LARS's trust ratio.
    Normalisation layers are found by type: names are not reliable, since the batch norm of a ResNet's shortcut is
    called `downsample.1`. A bias is a parameter with `bias` in its own name (`bias`, `in_proj_bias`, `bias_hh_l0`).

    `lr_factors` has factors by module or parameter: `layer1` stands for all parameters whose names begin with
    `layer1.`; the longest name that fits wins; others have factor 1.

    Groups have `params`, `names` (full names, in the order of `params`), `decay`, `lr_factor`, and, if `decay` is
    False, `weight_decay` 0 for torch's optimizers. The order is that of `model.named_parameters()`. A parameter of
    several modules is in one group, once; it decays unless one of them excludes it. Empty groups are left out.

    Raises RecipeError for a name in `lr_factors` that gives no trainable parameter its factor.

    Source: MLPerf training rules for ResNet; Goyal et al. 2017 (arXiv 1706.02677), section 5.1, for batch norm.
    """
    lr_factors = {} if lr_factors is None else lr_factors
    excluded = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if isinstance(module, NORMALISATIONS) or "bias" in name.split("_")
    }
    groups: dict[tuple[bool, float], Group] = {}
    unused = set(lr_factors)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = _longest_prefix(name, lr_factors)
        unused.discard(prefix)
        key = (id(parameter) not in excluded, float(lr_factors.get(prefix, 1.0)))
        decay, factor = key
        group = groups.setdefault(key, {"params": [], "names": [], "decay": decay, "lr_factor": factor})
        group["params"].append(parameter)
        group["names"].append(name)
        if not decay:
            group["weight_decay"] = 0.0
    for prefix in sorted(unused):
        raise _unused(prefix, model)
    return sorted(groups.values(), key=lambda group: not group["decay"])


def write_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the LR of every group to `learning_rate` times the group's `lr_factor` (1 if it has none).

    Every engine does so before a step. An LR that is a tensor keeps its memory, so that a captured step reads it.

    >>> groups = [{"params": [torch.ones(1)], "lr_factor": 0.5}, {"params": [torch.ones(1)]}]
    >>> optimizer = torch.optim.SGD(groups, lr=0.0)
    >>> write_learning_rate(optimizer, 0.2)
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.1, 0.2]
    """
    for group in optimizer.param_groups:
        rate = learning_rate * group.get("lr_factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _longest_prefix(name: str, prefixes: Mapping[str, float]) -> str:
    """The longest of `prefixes` that is `name` or some of its first parts; an empty text if there is none."""
    return max((prefix for prefix in prefixes if f"{name}.".startswith(f"{prefix}.")), key=len, default="")


def _unused(prefix: str, model: nn.Module) -> RecipeError:
    key = "optimizer.lr_factors"
    names = [name for name, _ in model.named_parameters()]
    if any(f"{name}.".startswith(f"{prefix}.") for name in names):
        problem = f"{prefix} has no effect: its parameters are not trained, or all of them have a longer name's factor"
        return RecipeError(key, problem, "names of modules with parameters that are trained")
    every = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    near = nearest_name(prefix, sorted(every))
    hint = f". Did you mean {near}?" if near else ""
    top = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
    return RecipeError(key, f"the model has no module or parameter {prefix}", f"names such as {top}{hint}")
