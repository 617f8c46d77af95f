"""From a recipe's `data.source` to an index."""

from __future__ import annotations

from resnet_dist.data.image_folder import Split, index_image_folder
from resnet_dist.data.index import Index
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import call_function
from resnet_dist.recipe.schema import DataRecipe


def index_of(recipe: DataRecipe, split: Split) -> Index:
    """The index of one split. The number of training samples is compared with `recipe.num_samples`.

    Raises RecipeError if the source cannot be loaded or returns no Index, or if the number of samples differs;
    DataError for broken data.
    """
    index = _index_of_source(recipe, split)
    if split == "train":
        check_num_samples(recipe, index)
    return index


def check_num_samples(recipe: DataRecipe, train: Index) -> None:
    """Raise RecipeError if `recipe.num_samples` is not the number of training samples."""
    if recipe.num_samples not in (None, len(train)):
        raise RecipeError(
            "data.num_samples",
            f"is {recipe.num_samples}, but the training split in {recipe.root} has {len(train)} images",
            f"{len(train)}, or leave the key out; if the data is incomplete, copy it again",
        )


def _index_of_source(recipe: DataRecipe, split: Split) -> Index:
    if recipe.source == "imagefolder":
        return index_image_folder(recipe.root, split)
    index = call_function("data.source", recipe.source, root=recipe.root, split=split)
    if not isinstance(index, Index):
        found = f"{recipe.source} returned {type(index).__name__}, not an Index"
        raise RecipeError("data.source", found, "package.module:function that returns a resnet_dist.data.Index")
    return index
