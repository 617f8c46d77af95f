"""Networks, their initialisation, and batch norm over spans."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from resnet_dist.errors import RecipeError
from resnet_dist.models.initialisation import initialise, zero_last_gammas
from resnet_dist.models.resnet import BasicBlock, Bottleneck, ResidualBlock, ResNet, SmallResNet
from resnet_dist.models.weights import load_weights
from resnet_dist.recipe.references import call_function
from resnet_dist.recipe.schema import ModelRecipe

__all__ = [
    "MODELS",
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "ResidualBlock",
    "SmallResNet",
    "build_model",
    "load_weights",
]

Builder = Callable[[int], nn.Module]  # num_classes -> network

MODELS: dict[str, Builder] = {
    # He et al. 2015 (arXiv 1512.03385), table 1: ImageNet
    "resnet18": lambda num_classes: ResNet(BasicBlock, (2, 2, 2, 2), num_classes),
    "resnet34": lambda num_classes: ResNet(BasicBlock, (3, 4, 6, 3), num_classes),
    "resnet50": lambda num_classes: ResNet(Bottleneck, (3, 4, 6, 3), num_classes),
    "resnet101": lambda num_classes: ResNet(Bottleneck, (3, 4, 23, 3), num_classes),
    "resnet152": lambda num_classes: ResNet(Bottleneck, (3, 8, 36, 3), num_classes),
    # the same, section 4.2: images of 32 pixels, 6n + 2 layers
    "resnet20": lambda num_classes: SmallResNet(3, num_classes),
    "resnet32": lambda num_classes: SmallResNet(5, num_classes),
    "resnet44": lambda num_classes: SmallResNet(7, num_classes),
    "resnet56": lambda num_classes: SmallResNet(9, num_classes),
    "resnet110": lambda num_classes: SmallResNet(18, num_classes),
}


def build_model(recipe: ModelRecipe, seed: int) -> nn.Module:
    """The network of `recipe`: float32, on the CPU, in training mode, with parameters that depend only on `seed`.

    The state of torch's CPU generator is restored. A user's function is called as
    `function(num_classes=..., **arguments)` and initialises its model itself.

    Raises RecipeError for a user's function that cannot be loaded or returns no module, `zero_gamma` for a model
    without our residual blocks, and weights that do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the GPUs, whose state is not restored.
        torch.default_generator.manual_seed(seed)
        model = _create(recipe)
    if recipe.zero_gamma:
        zero_last_gammas(model)
    if recipe.weights is not None:
        load_weights(model, recipe.weights, recipe.num_classes)
    return model


def _create(recipe: ModelRecipe) -> nn.Module:
    if recipe.name in MODELS:
        assert not recipe.arguments  # refused by the rules
        model = MODELS[recipe.name](recipe.num_classes)
        initialise(model)
        return model
    made = call_function("model.name", recipe.name, num_classes=recipe.num_classes, **recipe.arguments)
    if not isinstance(made, nn.Module):
        problem = f"{recipe.name!r} returned an object of type {type(made).__name__}"
        raise RecipeError("model.name", problem, "a function that returns a torch.nn.Module")
    _call_own_train(made)
    return made


def _call_own_train(model: nn.Module) -> None:
    """Call each `train` method that a user's class defines, as `model.train()` would: it may freeze layers.

    Modules that are in evaluation mode stay in it.
    """
    frozen = [module for module in model.modules() if not module.training]
    for module in model.modules():
        if type(module).train is not nn.Module.train:
            module.train(module.training)
    for module in frozen:
        module.training = False
