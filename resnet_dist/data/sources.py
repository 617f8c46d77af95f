"""From a recipe's `data.source` to an index: image folders, or a user's own function."""

from __future__ import annotations

import importlib

from resnet_dist.data.image_folder import Split, index_image_folder
from resnet_dist.data.index import Index
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.schema import DataRecipe

_ALLOWED = "imagefolder, or package.module:function that returns a resnet_dist.data.Index"


def index_of(recipe: DataRecipe, split: Split) -> Index:
    """The index of one split, with the recipe's `num_samples` verified on the training split.

    RecipeError if the source cannot be loaded or is no source, or if the number of samples is another one than the
    recipe says; DataError if the data is broken.
    """
    index = _made_by_source(recipe, split)
    if split == "train" and recipe.num_samples is not None and recipe.num_samples != len(index):
        raise RecipeError(
            "data.num_samples",
            f"is {recipe.num_samples}, but the training split in {recipe.root} has {len(index)} images",
            f"{len(index)}, or leave the key out; if the data is incomplete, copy it again",
        )
    return index


def _made_by_source(recipe: DataRecipe, split: Split) -> Index:
    if recipe.source == "imagefolder":
        return index_image_folder(recipe.root, split)
    module_name, separator, function_name = recipe.source.partition(":")
    if not separator or not module_name or not function_name:
        raise RecipeError("data.source", f"{recipe.source!r} is not a source", _ALLOWED)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError("data.source", f"{module_name} cannot be imported: {error}", _ALLOWED) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise RecipeError("data.source", f"{module_name} has no function {function_name}", _ALLOWED)
    index = function(root=recipe.root, split=split)
    if not isinstance(index, Index):
        raise RecipeError("data.source", f"{recipe.source} returned {type(index).__name__}, not an Index", _ALLOWED)
    return index
