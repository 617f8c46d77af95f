"""Parameter groups: with weight decay (the weights of convolutions and linear layers) and without."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

Group = dict[str, Any]  # a parameter group of a torch optimizer

# _NormBase is the base of every batch norm and instance norm.
NORMALISATIONS: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def decay_groups(model: nn.Module) -> list[Group]:
    """The trainable parameters in two groups: with weight decay, then without. Empty groups are left out.

    All parameters of normalisation layers and all biases are excluded from weight decay and from LARS's trust ratio.
    Normalisation layers are found by type: names are not reliable, since the batch norm of a ResNet's shortcut is
    called `downsample.1`. A bias is a parameter with `bias` in its own name (`bias`, `in_proj_bias`, `bias_hh_l0`).

    Groups have `params`, `names` (full names, in the order of `params`), `decay`, and, if `decay` is False,
    `weight_decay` 0 for torch's optimizers. The order is that of `model.named_parameters()`. A parameter of several
    modules is in one group, once; it decays unless one of them excludes it.

    Source: MLPerf training rules for ResNet; Goyal et al. 2017 (arXiv 1706.02677), section 5.1, for batch norm.
    """
    excluded = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if isinstance(module, NORMALISATIONS) or "bias" in name.split("_")
    }
    decaying: Group = {"params": [], "names": [], "decay": True}
    others: Group = {"params": [], "names": [], "decay": False, "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = others if id(parameter) in excluded else decaying
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in (decaying, others) if group["params"]]
