"""The names of a model's classes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence

from launcher.inference.trained import Saved
from resnet_dist.data import Index
from resnet_dist.data.index.made import index_file
from resnet_dist.data.index.old import load_old
from resnet_dist.data.sources.classes import in_use
from resnet_dist.errors import DataError, RecipeError

# sha256 of ImageNet-1k's 1,000 wnids in sorted order with a newline between them: ILSVRC2012's folders of classes
_IMAGENET = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


def class_names(saved: Saved, recorded: Sequence[str]) -> tuple[str, ...]:
    """The class names by label: those `recorded` in the checkpoint, else those of the run's index; empty if unknown.

    A model may have more outputs than the data had classes: see `for_outputs`.
    """
    if recorded or saved.run is None:
        return tuple(recorded)
    file = index_file(saved.run.index, "train")
    index = None
    with contextlib.suppress(DataError):
        index = Index.load(file)
    index = index or load_old(file.with_suffix(".npz"))
    if index is None:
        return ()
    try:
        return in_use(saved.recipe.data, index.classes)[0]
    except RecipeError:  # the file `data.classes` is gone or has changed
        return ()


def for_outputs(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """One name per output of the model; outputs without a class are named by their number.

    >>> for_outputs(["cat", "dog"], 3)
    ('cat', 'dog', 'output 2')
    """
    return (*names[:num_classes], *(f"output {number}" for number in range(len(names), num_classes)))


def human_names(classes: Sequence[str]) -> Mapping[str, str]:
    """The English names of ImageNet-1k's classes by wnid, such as n01440764: tench; empty for other classes."""
    if hashlib.sha256("\n".join(classes).encode("utf-8", "surrogateescape")).hexdigest() != _IMAGENET:
        return {}
    from torchvision.models._meta import _IMAGENET_CATEGORIES  # in the order of the wnids

    return dict(zip(classes, _IMAGENET_CATEGORIES, strict=True))
