"""Networks, their initialisation, and batch norm over spans."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from resnet_dist.errors import RecipeError
from resnet_dist.models.freeze import freeze
from resnet_dist.models.initialisation import initialise, zero_last_gammas
from resnet_dist.models.resnet import Block, ResNet
from resnet_dist.models.weights import load_weights
from resnet_dist.recipe.architectures import MODELS, Architecture, architecture_of
from resnet_dist.recipe.references import call_function
from resnet_dist.recipe.schema import ModelRecipe

__all__ = [
    "MODELS",
    "Architecture",
    "Block",
    "ResNet",
    "architecture_of",
    "build_model",
    "load_weights",
]


def build_model(
    recipe: ModelRecipe, seed: int, read_weights: Callable[[str], Mapping[str, Tensor]] | None = None
) -> nn.Module:
    """The network of `recipe`: float32, on the CPU, in training mode, with parameters that depend only on `seed`.

    The state of torch's CPU generator is restored. A user's function is called as
    `function(num_classes=..., **arguments)` and initialises its model itself.

    `read_weights` returns the tensors in `recipe.weights`; the default reads files, as `load_weights` does.

    Raises RecipeError for a user's function that cannot be loaded or returns no module, `zero_gamma` for a model
    without our residual blocks, weights that do not fit, and frozen layers that the model does not have.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the GPUs, whose state is not restored.
        torch.default_generator.manual_seed(seed)
        model = _create(recipe)
    if recipe.zero_gamma:
        zero_last_gammas(model)
    if recipe.weights is not None:
        load_weights(model, recipe.weights, recipe.num_classes, read_weights)
    if recipe.freeze:
        freeze(model, recipe.freeze)
    return model


def _create(recipe: ModelRecipe) -> nn.Module:
    if recipe.name in MODELS:
        assert not recipe.arguments  # refused by the rules
        model = ResNet(architecture_of(recipe), recipe.num_classes)
        initialise(model, recipe.initialisation)
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
