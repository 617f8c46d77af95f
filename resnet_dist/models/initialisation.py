"""Initialisation of residual networks."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_dist.errors import RecipeError
from resnet_dist.models.resnet import ResidualBlock

LINEAR_STD = 0.01  # Goyal et al. 2017 (arXiv 1706.02677), section 5.1


def initialise(model: nn.Module) -> None:
    """Draw the parameters of `model` in place from torch's CPU generator, in the order of `model.modules()`.

    Convolutions: normal with variance 2 / (kernel area x output channels) (He et al. 2015, arXiv 1502.01852, section
    2.2, backward case; torchvision's too). Batch norm: weight 1, bias 0. Linear: normal with standard deviation 0.01,
    bias 0 (Goyal et al. 2017, section 5.1).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, _BatchNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=LINEAR_STD)
            nn.init.zeros_(module.bias)


def zero_last_gammas(model: nn.Module) -> None:
    """Set the weight of each residual block's last batch norm to 0, so that every block starts as its shortcut.

    Source: Goyal et al. 2017, section 5.1. Raises RecipeError for a model without a `ResidualBlock`.
    """
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    if not blocks:
        problem = f"{type(model).__name__} has no residual blocks of resnet_dist.models"
        raise RecipeError("model.zero_gamma", problem, "false for this model; set the weights in its own function")
    for block in blocks:
        nn.init.zeros_(block.last_norm.weight)
