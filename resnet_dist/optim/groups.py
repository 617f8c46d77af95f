"""Which parameters decay: the weights of convolutions and linear layers, and nothing else of a ResNet."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

# _NormBase is the base of every batch norm and instance norm.
NORMALISATIONS: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: first those that decay, then those that do not.

    Left out of weight decay, and of LARS's trust ratio, are every parameter of a normalisation layer and every bias.
    They are found by the type of the module that owns them: the batch norm of a ResNet's shortcut is called
    `downsample.1`, so a search for "bn" in the names would let it decay. A bias is a parameter that its module's class
    calls so (`bias`, `in_proj_bias`, `bias_hh_l0`), whatever the module's own place in the model is called.

    Returns groups with `params`, `names` (full names, in the order of `params`), `decay`, and, where `decay` is False,
    `weight_decay` 0, which any torch optimizer obeys. Order is that of `model.named_parameters()`. A parameter that
    several modules share is in one group, once, and decays only if none of its owners forbids it.

    Source: MLPerf training rules for ResNet; Goyal et al. 2017 (arXiv 1706.02677), section 5.1, for batch norm.
    """
    excluded = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if isinstance(module, NORMALISATIONS) or "bias" in name.split("_")
    }
    decaying: dict[str, Any] = {"params": [], "names": [], "decay": True}
    others: dict[str, Any] = {"params": [], "names": [], "decay": False, "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = others if id(parameter) in excluded else decaying
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in (decaying, others) if group["params"]]
