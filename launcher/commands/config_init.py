"""`launcher config init FOLDER [FILE]`: a config for a folder of images, with what can be read from it filled in."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config import load as configs
from launcher.config import yaml_source
from launcher.errors import UsageError
from launcher.formatting import count, listed
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.recipe.schema import ModelRecipe, plain

if TYPE_CHECKING:
    from resnet_dist.data.sources.listing import Listing

_SAMPLED = 500  # images whose sizes are read, of each split
_SMALL = 64  # pixels: up to this size a network without an early reduction, as on CIFAR-10
_IMAGENET = 224  # pixels: the size for which the large networks were designed
_LEAST_FOR_WEIGHTS = 96  # pixels
_UNBALANCED = 2.0  # largest / smallest class from which classes are weighted
_MANY = 50_000  # training images from which a ResNet-50 is proposed
_BATCHES = (256, 128, 64)  # the first of which an epoch has ten or more
_LEAST_BATCH = 32  # or 8 if there are fewer images
_ARCHITECTURE = ("residual", "width", "block", "shortcut", "normalisation", "activation_order", "arguments")
_HALF = [0.5, 0.5, 0.5]  # maps [0, 1] to [-1, 1]

# Assumptions, not tuned: training images below which a row applies, epochs from scratch, epochs of fine-tuning.
_EPOCHS = ((2_000, 100, 30), (20_000, 60, 15), (200_000, 30, 10), (None, 90, 10))


def add_parser(kinds: Any) -> None:
    """init FOLDER [FILE] [--weights PATH]"""
    kind = kinds.add_parser("init", help="a commented config for a folder of images, printed or written to a file")
    kind.add_argument("folder", metavar="FOLDER", type=Path, help="folder with train/CLASS/*.jpg and val/CLASS/*.jpg")
    kind.add_argument("file", metavar="FILE", type=Path, nargs="?", help="new YAML file (default: print the config)")
    kind.add_argument("--weights", metavar="PATH", type=Path, help="fine-tune a file of weights, a checkpoint or a run")
    kind.set_defaults(run=_init)


def _init(given: argparse.Namespace) -> int:
    folder = given.folder.expanduser().absolute()
    if given.file is not None and given.file.exists():
        raise UsageError(f"{given.file}: exists already. Allowed: the name of a new file")
    images = look_at(folder)
    start = None if given.weights is None else _start(given.weights.expanduser().absolute())
    text = "".join(f"{line}\n" for line in config_lines(images, start))
    configs.from_mapping(yaml_source.parse(text, "config init").data, Path.cwd(), name="config init")  # it is valid
    if given.file is None:
        print(text, end="")
        return 0
    try:
        with given.file.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{given.file}: cannot be written: {error.strerror}. Allowed: a file in a folder") from error
    print(f"{given.file}: {images.described}")
    for note in images.notes:
        print(f"  WARNING: {note}")
    print(f"next: launcher plan {given.file}; launcher train {given.file}")
    return 0


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a config says of a folder of images. Sizes are those of a sample."""

    root: Path
    counts: dict[str, int]  # training images of each class
    num_val: int
    shorter_side: int  # median, pixels
    smallest: tuple[int, int]  # height and width
    largest: tuple[int, int]
    notes: tuple[str, ...] = ()  # what was left out

    @property
    def num_train(self) -> int:
        """The number of training images."""
        return sum(self.counts.values())

    @property
    def imbalance(self) -> float:
        """Training images of the largest class / of the smallest."""
        return max(self.counts.values()) / min(self.counts.values())

    @property
    def described(self) -> str:
        """In words: classes, images, sizes."""
        low, high = ("{} x {}".format(*size) for size in (self.smallest, self.largest))
        sizes = f"{low} pixels" if low == high else f"{low} to {high} pixels"
        classes = count(len(self.counts), "class")
        return f"{classes}, {self.num_train:,} training and {self.num_val:,} val images of {sizes}"


@dataclass(frozen=True)
class Start:
    """Trained weights: where, the keys of `model` that fit them, and the keys of `data` that they were trained with."""

    path: Path
    model: dict[str, Any]
    parts: frozenset[str]  # first parts of the weights' names
    data: dict[str, Any] = field(default_factory=dict)
    for_imagenet: bool = False  # a network with an early reduction


def look_at(folder: Path) -> Images:
    """List the images in `folder`, and read the sizes of some of them.

    Raises DataError if train or val is missing or has no images, and for a single class.
    """
    import numpy as np  # it and the images' modules take time that other verbs should not pay

    from resnet_dist.data.headers.image import image_header
    from resnet_dist.data.sources.image_folder import list_images

    train, val = list_images(str(folder), "train"), list_images(str(folder), "val")
    if len(train.classes) < 2:
        found = f"has one class, {train.classes[0]}; expected at least two class folders"
        raise DataError(str(folder / "train"), found)
    sizes = np.array([image_header(str(folder / path))[:2] for found in (train, val) for path in _some(found)])
    numbers = np.bincount(train.labels, minlength=len(train.classes)).tolist()
    return Images(
        root=folder,
        counts=dict(zip(train.classes, numbers, strict=True)),
        num_val=len(val.paths),
        shorter_side=int(np.median(sizes.min(axis=1))),
        smallest=_size(sizes.min(axis=0)),
        largest=_size(sizes.max(axis=0)),
        notes=(*train.notes, *val.notes),
    )


def config_lines(images: Images, start: Start | None) -> Iterator[str]:
    """The lines of the config: from scratch, or from the weights in `start`."""
    num = images.num_train
    resolution = _resolution(images, start)
    small = resolution <= _SMALL
    model = start.model if start else {"name": _network(num, small=small)}
    batch = next((size for size in _BATCHES if size * 10 <= num), _LEAST_BATCH if num >= _LEAST_BATCH else 8)
    epochs, fine_tuned = next(row[1:] for row in _EPOCHS if row[0] is None or num < row[0])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", images.root.name).strip("-._")[:80] or "images"

    yield f"# {images.described}"
    yield "# Written by `launcher config init`: classes, sizes and counts are those of the folder. The rest follows by"
    yield "# simple rules from the number and size of the images: a start, not tuned. docs/config.md has all keys."
    yield ""
    yield "schema: 1"
    yield f"name: {name}-{'fine-tuned' if start else 'from-scratch'}"
    yield "storage: ~/resnet_runs"
    yield "place: local"
    yield f"resources: {{gpus_per_worker: {int(_has_gpu())}, cpus_per_worker: {min(8, os.cpu_count() or 1)}}}"
    yield f"duration: {fine_tuned if start else epochs} epochs"
    yield "model:"
    for key, value in model.items():
        yield f"  {key}: {value if isinstance(value, str) else json.dumps(value)}"
    yield _with_comment(f"  num_classes: {len(images.counts)}", listed([_shown(name) for name in images.counts]))
    if start:
        yield f"  weights: {json.dumps(str(start.path), ensure_ascii=False)}"
        frozen = ", ".join(name for name in ("conv1", "bn1") if name in start.parts)
        yield _with_comment(f"  freeze: [{frozen}]", "names, or first parts of names; [] trains all layers")
    yield "data:"
    yield f"  root: {json.dumps(str(images.root), ensure_ascii=False)}"
    yield f"  num_samples: {num}"
    yield _with_comment(f"  resolution: {resolution}", f"median of the images' shorter sides: {images.shorter_side}")
    yield _with_comment(f"  crop_area: {'[0.5, 1.0]' if small or start else '[0.2, 1.0]'}", "of random crops")
    yield f"  evaluation_crop: {1.0 if small else 0.875}"
    yield _with_comment("  flip: true", "false if a mirrored image shows another class, as with digits")
    given = start.data if start else {"mean": _HALF, "std": _HALF} if small else {}
    yield from (f"  {key}: {given[key]}" for key in ("mean", "std") if key in given)
    yield f"batch: {{size: {batch}}}"
    if start:
        yield "optimizer:"
        yield from ("  name: sgd", "  momentum: 0.9", "  nesterov: true", "  weight_decay: 1.0e-4")
        if "fc" in start.parts:
            yield _with_comment("  lr_factors: {fc: 10}", "the new head learns faster than the other layers")
        yield _with_comment("schedule: {base_lr: 0.01, warmup: 1 epoch, decay: cosine}", "LR for a batch of 256")
    else:
        decay = "5.0e-4" if small else "1.0e-4"
        yield f"optimizer: {{name: sgd, momentum: 0.9, nesterov: true, weight_decay: {decay}}}"
        yield _with_comment("schedule: {base_lr: 0.1, warmup: 2 epochs, decay: cosine}", "LR for a batch of 256")
    if images.imbalance >= _UNBALANCED:
        few, many = (choose(images.counts, key=images.counts.__getitem__) for choose in (min, max))
        found = f"{_shown(many)} has {images.imbalance:.1f} times the images of {_shown(few)}"
        yield _with_comment("loss: {class_weights: balanced}", found)
    yield "evaluate: {every: 1 epoch}"
    yield "checkpoint: {every: 1 epoch, keep: 2, keep_best: 1}"


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _with_comment(line: str, comment: str) -> str:
    return f"{line:<32}  # {comment}"


def _resolution(images: Images, start: Start | None) -> int:
    """The side of the network's input: what the weights were trained with, or else that of the images, up to 224.

    In steps of 32 from 64 up. Networks for ImageNet reduce their input 32 times, so their weights get 96 or more.
    """
    if start and "resolution" in start.data:
        return int(start.data["resolution"])
    side = images.shorter_side
    fits = max(32, side) if side <= _SMALL else min(_IMAGENET, side // 32 * 32)
    return max(fits, _LEAST_FOR_WEIGHTS) if start and start.for_imagenet else fits


def _network(num: int, *, small: bool) -> str:
    if small:
        return "resnet20"
    return "resnet50" if num >= _MANY else "resnet18"


def _start(path: Path) -> Start:
    """The model that fits the weights in `path`. Raises RecipeError if none of ours does, and as reading them does."""
    from resnet_dist.checkpoint import format
    from resnet_dist.models.weights import network_of
    from resnet_dist.recipe.architectures import MODELS
    from resnet_dist.training import initial_weights

    source = Path(initial_weights.located(str(path)))
    weights = initial_weights.read(str(source))
    parts = frozenset(name.split(".")[0] for name in weights)
    if not source.is_dir():
        name = network_of(weights)
        if not name:
            found = f"{path} has weights of none of the built-in networks"
            raise RecipeError("model.weights", found, "a config of yours with model.name package.module:function")
        return Start(path, {"name": name}, parts, for_imagenet=MODELS[name].stem != "small")
    recipe = format.read_json(source / format.STATE)["recipe"]  # what the run recorded
    plain_model = plain(ModelRecipe())
    model = {
        key: value
        for key, value in recipe["model"].items()
        if key == "name" or (key in _ARCHITECTURE and value != plain_model[key])
    }
    return Start(path, model, parts, {key: recipe["data"][key] for key in ("resolution", "mean", "std")})


def _has_gpu() -> bool:
    try:
        import torch  # takes seconds
    except (ImportError, OSError):  # it is not installed, or a library that it needs is not
        return False
    return torch.cuda.is_available()


def _some(found: Listing) -> list[str]:
    step = max(1, len(found.paths) // _SAMPLED)
    return list(found.paths[::step])


def _size(pair: Any) -> tuple[int, int]:
    return int(pair[0]), int(pair[1])
