"""The images of a config for its plan: how many there are, and how large they are."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.checks import shared_disks
from launcher.config.rules import problems
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, Problem
from resnet_dist.errors import RecipeError
from resnet_dist.object_stores import is_address
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import nearest_name
from resnet_dist.recipe.schema import DataRecipe

if TYPE_CHECKING:
    from resnet_dist.data.index.table import Index
    from resnet_dist.data.sources.listing import Listing

IMAGENET_BYTES = 147_897_477_120 / 1_281_167  # mean of an encoded image: ILSVRC2012_img_train.tar, bytes and images
PREPARED = ("digits", "fashion-mnist", "cifar10")  # data sets of `launcher prepare`
_SAMPLED = 1000  # files whose sizes are read


@dataclass(frozen=True)
class Images:
    """What is known of the images."""

    warnings: tuple[str, ...] = ()  # what a person should know
    mean_bytes: float | None = None  # of a training image
    num_shards: int | None = None  # of the training split
    num_val: int | None = None  # those that an evaluation uses


def counted(config: RunConfig) -> tuple[RunConfig, Images]:
    """The config with the number of training images, if it is not given and the images are on this machine.

    Raises DataError as the run would, RecipeError if there are no images here and their number is not given, and
    ConfigError for a source of the user's without it.
    """
    data = config.data
    if data.num_samples is None and is_reference(data.source):
        found = f"is not given, and a plan does not call {data.source}"
        raise ConfigError([Problem("", "data.num_samples", found, "the number of training images")])
    if data.num_samples is not None or data.source == "synthetic":
        crowded = shared_disks.warning(data, data.num_samples or 0)
        return config, Images(tuple(filter(None, (_absent(data), crowded))))
    where = Path(data.root, "train") if data.source == "imagefolder" else Path(data.root)
    if is_address(data.root):
        if data.source == "webdataset":
            found = f"is not given, and tar files in {data.root} would be read whole to count their images"
            raise RecipeError("data.num_samples", found, "the number of training images")
    elif not os.path.isdir(where):  # noqa: PTH112  Path.is_dir raises if the folder above cannot be read
        from resnet_dist.data.sources.image_folder import fitting_source

        hint = ""
        with contextlib.suppress(OSError):
            hint = fitting_source(os.listdir(data.root))  # noqa: PTH208
        allowed = "the folder of the data set; or data.num_samples, to plan without the images"
        if data.source == "imagefolder":
            command = prepare_command(data.root)
            allowed += f"; to write the images: {command}" if command else ""
            allowed += _similar(Path(data.root))
        raise RecipeError("data.root", f"there is no folder {where} on this machine{hint}", allowed)
    return _listed(config)


def prepare_command(root: str) -> str:
    """The command that writes the images of a folder with the name of a prepared data set; empty for other names."""
    return f"launcher prepare {Path(root).name} {shlex.quote(root)}" if Path(root).name in PREPARED else ""


def _similar(root: Path) -> str:
    """A hint at the image folder beside `root` whose name is the nearest; empty without one."""
    with contextlib.suppress(OSError):
        near = nearest_name(root.name, [train.parent.name for train in root.parent.glob("*/train")])
        return f". Did you mean {root.with_name(near)}?" if near else ""
    return ""


def _absent(data: DataRecipe) -> str | None:
    """A warning if the images are not on this machine; None if they are, or are elsewhere."""
    if data.source != "imagefolder" or is_address(data.root) or os.path.isdir(Path(data.root, "train")):  # noqa: PTH112
        return None
    return f"there is no folder {Path(data.root, 'train')} on this machine; data.num_samples is used"


def _listed(config: RunConfig) -> tuple[RunConfig, Images]:
    from resnet_dist.data.index.table import compare_classes
    from resnet_dist.data.sources.by_name import listed, num_in_use
    from resnet_dist.data.sources.classes import in_use

    data = config.data
    train, val = listed(data, "train"), listed(data, "val")
    if train is None or val is None:  # a source that the rules refuse
        return config, Images()
    classes, _ = in_use(data, train.classes)
    notes = [*train.notes, *val.notes, *compare_classes(data.root, classes, config.model.num_classes)]
    if crowded := shared_disks.warning(data, len(train.paths) + len(val.paths)):
        notes.append(crowded)
    config = dataclasses.replace(config, data=dataclasses.replace(data, num_samples=num_in_use(data, train)))
    for problem in problems(config, config.data.num_trained()):
        raise problem
    return config, Images(tuple(notes), image_bytes(data, train), len(train.shards), num_in_use(data, val))


def image_bytes(data: DataRecipe, found: Listing | Index | None) -> float | None:
    """The mean size of an encoded training image, of what is listed; of files, from some of them. None if unknown."""
    if found is None:
        return None
    if len(found.num_bytes) and found.num_bytes.any():
        return float(found.num_bytes.mean())
    if found.shards:
        files, num = [f"{data.root}/{shard}" for shard in found.shards], len(found.paths)
    else:
        rows = range(0, len(found.paths), max(1, len(found.paths) // _SAMPLED))
        files, num = [f"{data.root}/{found.paths[row]}" for row in rows], len(rows)
    try:
        return sum(Path(file).stat().st_size for file in files) / num
    except OSError:
        return None
