"""The images of an evaluation: those of a run's val split, or of another data set with classes of the same names."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_dist.data import Index, index_of
from resnet_dist.data.index.build import build_index, refreshed
from resnet_dist.data.index.made import saved_index
from resnet_dist.data.names import some
from resnet_dist.data.sources.by_name import LISTINGS, identity
from resnet_dist.data.sources.classes import select
from resnet_dist.data.sources.known_bad import known_names, with_known_bad
from resnet_dist.data.sources.listing import SUFFIXES, LeftOut, Listing
from resnet_dist.data.sources.synthetic import synthetic_indices
from resnet_dist.data.storage.local import storage_of
from resnet_dist.errors import DataError
from resnet_dist.object_stores import is_address
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.schema import DataRecipe

Report = Callable[[int, int], object]  # images whose headers are read, of how many


@dataclass(frozen=True, eq=False)
class Images:
    """Images with the labels of a model."""

    index: Index  # its classes are those of the model, one for each output
    missing: tuple[str, ...] = ()  # classes of the model that the data set does not have
    extra: tuple[str, ...] = ()  # classes of the data set that the model does not know
    num_left_out: int = 0  # images of those


def run_index(data: DataRecipe, num_classes: int, folder: Path | None, shared: Path | None, report: Report) -> Index:
    """The val split of a run, in the order in which the run evaluates it, broken images included.

    `folder` and `shared` are those of the run's indices, which are used if they are current; nothing is written.
    Raises DataError or RecipeError for data that cannot be read.
    """
    if data.source == "synthetic":
        return synthetic_indices(data, num_classes)[1]
    found = None
    if folder is not None and data.source in LISTINGS:
        found = saved_index(data, "val", folder, shared)
    index = _read(data, report) if found is None else refreshed(found, data=data)
    _, index = select(data, index, index)
    [index] = with_known_bad([index.with_exif(data.exif)], known_names(data))
    return index


def index_at(data: DataRecipe, report: Report) -> Index:
    """The val split of the data set at `data.root`; of a folder without `val`, the images in its folders of classes.

    Raises DataError or RecipeError for data that cannot be read.
    """
    root = data.root
    if data.source == "imagefolder" and not is_address(root) and not (Path(root) / "val").is_dir():
        return build_index(_class_folders(root), root, identity(data), data=data, report=report).with_exif(data.exif)
    return _read(data, report).with_exif(data.exif)


def other_data(data: DataRecipe, root: str) -> DataRecipe:
    """`data`, of a run, for the data set at `root`: its source is found by the files in it.

    card.json is of packed shards, *.tar of webdataset, *.parquet of parquet; all others are folders of images. At an
    address, and for a user's function, the source is that of `data`. Raises DataError if `root` is no folder.
    """
    changed = dataclasses.replace(data, root=root, classes=None, known_bad=None, num_samples=None)
    if is_address(root) or is_reference(data.source):
        return changed
    try:
        names = sorted(entry.name for entry in Path(root).iterdir())
    except OSError as error:
        raise DataError(root, f"cannot be read: {error.strerror}. Allowed: the folder of a data set") from error
    kinds = {"card.json": "packed", ".tar": "webdataset", ".parquet": "parquet"}
    source = next((kind for end, kind in kinds.items() if any(name.endswith(end) for name in names)), "imagefolder")
    if source == data.source:
        return changed
    return dataclasses.replace(changed, source=source, image_key=None, label_key=None)


def with_labels_of(names: Sequence[str], index: Index) -> Images:
    """The images of `index` whose classes are in `names`, the model's; labels are matched by name.

    Raises DataError if no class is known, or if several have the same name.
    """
    names = tuple(names)
    present = {index.classes[label] for label in np.unique(index.labels).tolist()}
    missing = tuple(name for name in names if name not in present)
    if index.classes == names[: len(index.classes)]:
        return Images(dataclasses.replace(index, classes=names), missing)
    numbers = {name: number for number, name in enumerate(names)}
    extra = tuple(name for name in index.classes if name not in numbers)
    if not present & numbers.keys():
        raise DataError(
            index.root,
            f"has no class of the model. It has {some(sorted(present))}; the model predicts {some(names)}. Allowed: "
            "classes with the same names",
        )
    counts = Counter(name for name in (*index.classes, *names) if name in numbers)
    if twice := next((name for name in index.classes if counts[name] > 2), None):
        raise DataError(index.root, f"several classes have the name {twice}: they cannot be matched by name")
    labels = np.array([numbers.get(name, -1) for name in index.classes], np.int64)[index.labels]
    rows = np.flatnonzero(labels >= 0)
    taken = index if len(rows) == len(index) else index.take(rows)
    found = dataclasses.replace(taken, classes=names, labels=labels[rows])
    return Images(found, missing, extra, len(index) - len(rows))


def index_of_files(paths: Sequence[str]) -> Index:
    """An index of image files by absolute paths: it has one class, and `problems` of files that are no images."""
    names = [path.removeprefix("/") for path in paths]
    return build_index(Listing(("",), names, [0] * len(names)), "/", "imagefolder")


def image_files(folder: str) -> list[str]:
    """The paths of all image files in a folder and in the folders in it, sorted. Raises DataError."""
    storage = storage_of(folder)
    return [str(Path(folder, entry.path)) for entry in storage.entries(deep=True) if _is_image(entry.path)]


def _read(data: DataRecipe, report: Report) -> Index:
    if data.source not in LISTINGS:
        return index_of(data, "val")
    return build_index(LISTINGS[data.source](data, "val"), data.root, identity(data), data=data, report=report)


def _class_folders(root: str) -> Listing:
    """The images in `root`/CLASS, and in folders in it."""
    left_out = LeftOut()
    paths = [entry.path for entry in storage_of(root).entries(deep=True, left_out=left_out.add)]
    images = [path for path in paths if "/" in path and _is_image(path)]
    if not images:
        expected = "expected ROOT/val/CLASS/*.jpg, ROOT/CLASS/*.jpg, or packed shards, *.tar or *.parquet"
        raise DataError(root, f"has no images; {expected}; it contains {some(paths)}")
    classes = sorted({path.partition("/")[0] for path in images})
    numbers = {name: number for number, name in enumerate(classes)}
    return Listing(
        tuple(classes), images, [numbers[path.partition("/")[0]] for path in images], {}, tuple(left_out.notes(root))
    )


def _is_image(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)
