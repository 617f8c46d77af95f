"""From a recipe's `data.source` to an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from resnet_dist.data.index.build import build_index, check_whole
from resnet_dist.data.index.table import Index
from resnet_dist.data.sources.classes import in_use
from resnet_dist.data.sources.image_folder import class_names, list_images
from resnet_dist.data.sources.listing import SPLITS, Listing, Split, Tell
from resnet_dist.data.sources.packed import packed_index
from resnet_dist.data.sources.parquet import list_rows
from resnet_dist.data.sources.remote_folder import an_object, list_objects
from resnet_dist.data.sources.shards import find_shards
from resnet_dist.data.sources.webdataset import list_tars
from resnet_dist.data.storage.local import storage_of
from resnet_dist.data.storage.remote import RemoteStorage
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import call_function
from resnet_dist.recipe.schema import DataRecipe


def _list_folder(recipe: DataRecipe, split: Split, tell: Tell = lambda text: None) -> Listing:
    storage = storage_of(recipe.root)
    return list_objects(storage, split) if isinstance(storage, RemoteStorage) else list_images(recipe.root, split)


# data.source: what it lists in a split. The third argument, a `Tell`, may be left out. Raises DataError for a root that
# it cannot read.
LISTINGS: Mapping[str, Callable[..., Listing]] = {
    "imagefolder": _list_folder,
    "webdataset": list_tars,
    "parquet": list_rows,
}
_KEYS = ("image_key", "label_key")  # of `data`, besides root and source, that decide what is listed


def identity(recipe: DataRecipe) -> str:
    """What an index's `source` is compared with: `recipe.source`, and the keys given that change what it lists.

    >>> identity(DataRecipe()), identity(DataRecipe(source="parquet", label_key="fine_label"))
    ('imagefolder', 'parquet, label_key fine_label')
    """
    return ", ".join([recipe.source, *(f"{key} {value}" for key in _KEYS if (value := getattr(recipe, key)))])


def index_of(recipe: DataRecipe, split: Split) -> Index:
    """The index of one split, with all classes of the root: `data.classes` is applied later.

    Raises RecipeError if the source cannot be loaded or returns no Index; DataError for broken data.
    """
    if recipe.source == "packed":
        return packed_index(recipe, split)
    if recipe.source in LISTINGS:
        index = build_index(LISTINGS[recipe.source](recipe, split), recipe.root, identity(recipe), data=recipe)
        check_whole(index)
        return index
    made = call_function("data.source", recipe.source, root=recipe.root, split=split)
    if not isinstance(made, Index):
        found = f"{recipe.source} returned {type(made).__name__}, not an Index"
        raise RecipeError("data.source", found, "package.module:function that returns a resnet_dist.data.Index")
    return made


def listed(recipe: DataRecipe, split: Split) -> Listing | Index | None:
    """What the index of a split will have, found without reading an image; None for other sources (synthetic, users').

    Raises DataError as `index_of`, except for broken images.
    """
    if recipe.source == "packed":
        return packed_index(recipe, split)
    return LISTINGS[recipe.source](recipe, split) if recipe.source in LISTINGS else None


def num_in_use(recipe: DataRecipe, found: Listing | Index) -> int:
    """How many samples have a class that `data.classes` names; all of them without that key. Raises RecipeError."""
    _, new_labels = in_use(recipe, found.classes)
    return int((new_labels[np.asarray(found.labels)] >= 0).sum())


def check_root(recipe: DataRecipe) -> None:
    """Raise the error of a root without the folders, shards or classes that both splits need. No sample is listed."""
    storage = storage_of(recipe.root)
    for split in SPLITS:
        if isinstance(storage, RemoteStorage) and recipe.source == "imagefolder":
            in_use(recipe, an_object(storage, split).classes)
        elif recipe.source == "imagefolder":
            in_use(recipe, class_names(recipe.root, split))
        elif recipe.source == "packed":
            in_use(recipe, packed_index(recipe, split).classes)
        elif recipe.source in ("webdataset", "parquet"):
            find_shards(storage, split, ".tar" if recipe.source == "webdataset" else ".parquet", recipe.num_samples)


def check_num_samples(recipe: DataRecipe, train: Index) -> None:
    """Raise RecipeError if `recipe.num_samples` is not the number of training samples, of the classes in use."""
    if recipe.num_samples not in (None, len(train)):
        raise RecipeError(
            "data.num_samples",
            f"is {recipe.num_samples}, but the training split in {recipe.root} has {len(train)} images",
            f"{len(train)}, or leave the key out; if the data is incomplete, copy it again",
        )


def index_image_folder(root: str, split: Split) -> Index:
    """Index the images that `list_images` finds in root/split. Raises DataError as it does, and for broken files."""
    index = build_index(list_images(root, split), root, "imagefolder")
    check_whole(index)
    return index
