"""`data.known_bad`: a list of images that are not read and have weight 0."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from resnet_dist.data.index.table import Index, Kind
from resnet_dist.data.names import some
from resnet_dist.errors import RecipeError
from resnet_dist.input_files import read_whole
from resnet_dist.recipe.schema import DataRecipe

_IN_SHARD = re.compile(r"^[^:]+\.(tar|parquet): ")

_log = logging.getLogger(__name__)


def known_names(data: DataRecipe) -> frozenset[str]:
    """The names in the file `data.known_bad`: paths as in the index, relative to the root. Empty without the key.

    A line has one name; empty lines and those that begin with # are left out. A name in double quotes is a string of
    JSON, as `line_of` writes it. Of a sample in a shard, `SHARD: NAME` is its name too, as messages have it. Raises
    RecipeError if the file cannot be read.
    """
    if data.known_bad is None:
        return frozenset()
    try:
        text = read_whole(Path(data.known_bad)).decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        found = f"{data.known_bad} cannot be read: {error.strerror or error}"
        raise RecipeError("data.known_bad", found, "a text file with the path of an image per line") from error
    lines = (line.strip(" \t\r") for line in text.split("\n"))
    prefix = data.root.rstrip("/") + "/"
    names = (_unquoted(line).removeprefix(prefix).removeprefix("./") for line in lines if line and line[0] != "#")
    return frozenset(names if data.source == "imagefolder" else (_IN_SHARD.sub("", name) for name in names))


def line_of(name: str) -> str:
    """The line for an image in the file `data.known_bad`, without its end: the name, in quotes where it must be."""
    plain = name and name[0] not in '#"' and name == name.strip(" \t\r") and "\n" not in name
    return name if plain else json.dumps(name)


def _unquoted(line: str) -> str:
    try:
        name = json.loads(line) if line[0] == '"' else line
    except ValueError:
        return line
    return name if isinstance(name, str) else line


def with_known_bad(indices: Sequence[Index], names: Collection[str], *, warn: bool = False) -> list[Index]:
    """The indices with `Kind.BROKEN` for all samples of these names; ids and fingerprints stay as they are.

    `warn`: log how many names are in none of the indices, some of them, and the nearest name to the first.
    """
    if not names:
        return list(indices)
    wanted, found = frozenset(names), set[str]()
    marked = []
    for index in indices:
        rows = [row for row, name in enumerate(index.paths[:]) if name in wanted]
        found |= {index.paths[row] for row in rows}
        kinds = np.array(index.kinds)
        kinds[rows] = Kind.BROKEN
        marked.append(dataclasses.replace(index, kinds=kinds))
    missing = sorted(wanted - found)
    if missing and warn:
        text = "data.known_bad: %d of %d names are not in the data set: %s%s"
        _log.warning(text, len(missing), len(wanted), some(missing), _nearest(missing[0], indices))
    return marked


def _nearest(name: str, indices: Sequence[Index]) -> str:
    """The image that was probably meant, of those in the same folder or with the same file name; as text."""
    path = PurePosixPath(name)
    folder, file = f"{path.parent}/", f"/{path.name}"
    near = [one for index in indices for one in index.paths[:] if one.startswith(folder) or one.endswith(file)]
    found = difflib.get_close_matches(name, near, n=1)
    return f". Nearest to the first: {found[0]}" if found else ""


def unlisted_broken(index: Index, names: Collection[str]) -> dict[str, str]:
    """The broken samples of `index` that are not in `names`: {name: what is wrong}."""
    rows = np.flatnonzero(index.kinds == Kind.BROKEN).tolist()
    found = {index.paths[row]: index.problems.get(row, "is known to be broken") for row in rows}
    return {name: problem for name, problem in found.items() if name not in names}
