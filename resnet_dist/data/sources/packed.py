"""Packed shards, which `launcher prepare pack` writes: tar files with a finished index.

ROOT/train-000000.tar ...      WebDataset's layout: 00000000.cls and 00000000.jpg for each sample
     index/train.safetensors   the index of a split; names and order are those of the source
     classes.txt               the names of the classes
     card.json                 what was packed and how, and the size and sha256 of each shard; written last
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from resnet_dist.data.index.table import Index
from resnet_dist.data.sources.listing import Split
from resnet_dist.data.storage.local import Storage, storage_of
from resnet_dist.errors import DataError
from resnet_dist.object_stores import is_address
from resnet_dist.recipe.schema import DataRecipe

CARD = "card.json"
FORMAT = 1  # of the card
AGAIN = "copy it again, or run `launcher prepare pack` again"


def index_path(split: Split) -> str:
    """Where the index of a split is, relative to the root."""
    return f"index/{split}.safetensors"


def packed_index(recipe: DataRecipe, split: Split) -> Index:
    """The index of packed shards, after a comparison of the shards' sizes. No image is read.

    Raises DataError if the packing is not complete, or if a shard is missing or has another size.
    """
    storage = storage_of(recipe.root, recipe)
    sizes = {shard["name"]: shard["bytes"] for shard in read_card(storage)["splits"][split]["shards"]}
    entries = {entry.path: entry for entry in storage.entries()}
    index = _loaded(storage, index_path(split))
    for shard in index.shards:
        path, entry = f"{recipe.root}/{shard}", entries.get(shard)
        if entry is None:
            raise DataError(path, f"is missing; {AGAIN}")
        if entry.num_bytes != sizes.get(shard):
            raise DataError(path, f"has {entry.num_bytes:,} bytes, and {CARD} says {sizes.get(shard, 0):,}; {AGAIN}")
    times_ns = {shard: entries[shard].time_ns for shard in index.shards}
    return dataclasses.replace(index, root=recipe.root, source=recipe.source, folder_times_ns=times_ns)


def read_card(storage: Storage) -> dict[str, Any]:
    """The card of packed shards. Raises DataError if there is none, or if it is damaged or of another version."""
    path = f"{storage.root}/{CARD}"
    names = {entry.path for entry in storage.entries()}
    if CARD not in names:
        if not any(name.endswith(".tar") for name in names):
            problem = "does not exist, and no shards: pack a data set with `launcher prepare pack SOURCE OUTPUT`"
            raise DataError(path, problem)
        problem = "does not exist: these are no packed shards, or packing them was interrupted and goes on with"
        raise DataError(path, f"{problem} the same `launcher prepare pack` command")
    try:
        card = json.loads(storage.read(CARD))
        if card["format"] != FORMAT:
            raise DataError(path, f"has the format {card['format']}; this version reads {FORMAT}")
        for content in card["splits"].values():
            for shard in content["shards"]:
                _ = shard["name"], int(shard["bytes"]), shard["sha256"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(path, f"is damaged ({type(error).__name__}: {error}); {AGAIN}") from error
    return dict(card)


def _loaded(storage: Storage, path: str) -> Index:
    """The index at `path`, memory-mapped; one from an address is copied to a temporary file first."""
    if not is_address(storage.root):
        return Index.load(Path(storage.root) / path)
    with tempfile.TemporaryDirectory() as folder:  # its file stays mapped until nothing uses it
        copy = Path(folder) / "index.safetensors"
        copy.write_bytes(storage.read(path))
        return Index.load(copy)
