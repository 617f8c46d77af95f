"""From a recipe's `data.source` to an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from resnet_dist.data.build_index import build_index
from resnet_dist.data.image_folder import list_images
from resnet_dist.data.index import Index
from resnet_dist.data.listing import Listing, Split
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import call_function
from resnet_dist.recipe.schema import DataRecipe

# data.source: what it lists in a split. Raises DataError for a root that it cannot read.
LISTINGS: Mapping[str, Callable[[DataRecipe, Split], Listing]] = {
    "imagefolder": lambda recipe, split: list_images(recipe.root, split),
}


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
    if recipe.source in LISTINGS:
        return build_index(LISTINGS[recipe.source](recipe, split), recipe.root, recipe.source)
    index = call_function("data.source", recipe.source, root=recipe.root, split=split)
    if not isinstance(index, Index):
        found = f"{recipe.source} returned {type(index).__name__}, not an Index"
        raise RecipeError("data.source", found, "package.module:function that returns a resnet_dist.data.Index")
    return index


def index_image_folder(root: str, split: Split) -> Index:
    """Index the images that `list_images` finds in root/split. Raises DataError as it does, and for broken files."""
    return build_index(list_images(root, split), root, "imagefolder")
