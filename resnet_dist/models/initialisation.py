"""Initialisation of residual networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_dist.errors import RecipeError
from resnet_dist.models.resnet import Block, PreActivationBlock
from resnet_dist.recipe.schema import InitialisationRecipe

LINEAR_STD = 0.01  # Goyal et al. 2017 (arXiv 1706.02677), section 5.1
_DEFAULT_STD = 0.01  # of `normal`: AlexNet's (Krizhevsky et al. 2012, section 5), the usual one before He et al.


def initialise(model: nn.Module, recipe: InitialisationRecipe | None = None) -> None:
    """Draw the parameters of `model` in place from torch's CPU generator, in the order of `model.modules()`.

    Convolutions: as `recipe` says, by default normal with variance 2 / (kernel area x output channels) (He et al. 2015,
    arXiv 1502.01852, section 2.2, backward case; torchvision's too); bias 0. Batch norm: weight 1, bias 0. Linear:
    normal with standard deviation 0.01, bias 0 (Goyal et al. 2017, section 5.1).
    """
    recipe = InitialisationRecipe() if recipe is None else recipe
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _draw(module.weight, recipe)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=LINEAR_STD)
            nn.init.zeros_(module.bias)


def _draw(weight: Tensor, recipe: InitialisationRecipe) -> None:
    """Draw the weight of a convolution, [out, in / groups, kernel, kernel].

    As in torch, the output channels of a convolution with groups count as a whole.
    """
    if recipe.name == "normal":
        nn.init.normal_(weight, std=_DEFAULT_STD if recipe.std is None else recipe.std)
    elif recipe.name == "xavier_normal":
        nn.init.xavier_normal_(weight)
    elif recipe.name == "xavier_uniform":
        nn.init.xavier_uniform_(weight)
    else:
        draw = nn.init.kaiming_normal_ if recipe.name == "he_normal" else nn.init.kaiming_uniform_
        draw(weight, mode=recipe.mode or "fan_out", nonlinearity="relu")


def zero_last_gammas(model: nn.Module) -> None:
    """Set the weight of each residual block's last batch norm to 0, so that every block starts as its shortcut.

    Source: Goyal et al. 2017, section 5.1. Raises RecipeError for a model without such blocks of our own.
    """
    norms = [
        module.last_norm
        for module in model.modules()
        if isinstance(module, Block) and not isinstance(module, PreActivationBlock) and module.residual
    ]
    batch_norms = [norm for norm in norms if isinstance(norm, _BatchNorm)]
    if not batch_norms:
        problem = f"{type(model).__name__} has no residual blocks of resnet_dist.models that end with a batch norm"
        raise RecipeError("model.zero_gamma", problem, "false for this model; set the weights in its own function")
    for norm in batch_norms:
        nn.init.zeros_(norm.weight)
