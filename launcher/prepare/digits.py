"""`launcher prepare DATASET`, and a small data set without a download: handwritten digits as an image folder.

scikit-learn includes 1,797 digits of 8 × 8 pixels (UCI's Optical Recognition of Handwritten Digits). Without it, digits
are drawn with Pillow's font. Both are written as folder/train/<0..9>/NNNN.jpg and folder/val/<0..9>/NNNN.jpg.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from launcher.errors import UsageError
from launcher.prepare import folder as prepared_folder
from launcher.prepare.baselines import classical_baselines
from launcher.prepare.cifar10 import write_cifar10
from launcher.prepare.idx import write_fashion_mnist
from resnet_dist.errors import MissingPackage

SIDE = 32  # pixels of a written image
_JPEG_QUALITY = 95
_VAL_EVERY = 5  # every fifth image of each class goes to val: 355 of scikit-learn's 1,797, 360 of the 1,800 drawn
_DATASET = "digits"

_DRAWN_PER_CLASS = 180
_DRAWN_SEED = 0

DigitImages = Iterable[tuple[Image.Image, int]]  # images and labels


def prepare(dataset: str, folder: Path, source: Path | None = None, *, baselines: bool = False) -> Iterator[str]:
    """Write a data set to `folder`, from the files in `source`; yields what was done, line by line.

    UsageError for a source or baselines that the data set does not have; the errors of its function below.
    """
    if source is not None and dataset == "digits":
        raise UsageError("--from: digits are written without other files. Allowed: with fashion-mnist or cifar10")
    if baselines and dataset == "cifar10":
        raise UsageError("--baselines: not for cifar10. Allowed: with digits or fashion-mnist")
    if dataset == "fashion-mnist":
        write_fashion_mnist(folder, source)
    elif dataset == "cifar10":
        write_cifar10(folder, source)
    else:
        write_digits(folder)
    counts = prepared_folder.marker(folder, dataset)
    yield f"images in {folder}: {counts['train']:,} for training, {counts['val']:,} for evaluation"
    if baselines:
        for name, value in classical_baselines(folder).items():
            yield f"  {name}: {value:g}" if name == "k" else f"  {name}: {value:.2%}"


def write_demo_images(folder: Path) -> tuple[Path, str]:
    """Write scikit-learn's digits, or drawn ones without it; returns the folder and a description of its content.

    DataError if `folder` holds something else.
    """
    if importlib.util.find_spec("sklearn") is not None:
        write_digits(folder)
        label = "scikit-learn's handwritten digits"
    else:
        write_drawn_digits(folder)
        label = "digits drawn with Pillow's font (scikit-learn is not installed)"
    counts = prepared_folder.marker(folder, _DATASET)
    return folder, f"{label}: {counts['train']} images for training, {counts['val']} for evaluation"


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's handwritten digits, 32 × 32 pixels, as 1,442 JPEGs in train and 355 in val.

    A complete folder is kept. MissingPackage without scikit-learn; DataError if `folder` holds something else.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingPackage("data.root", "scikit-learn", "pip install 'resnet-launcher[demo]'")
    return prepared_folder.write(folder, _DATASET, "scikit-learn", lambda: _files(_sklearn_digits()))


def write_drawn_digits(folder: Path) -> Path:
    """Draw 1,800 digits (180 of each), shifted, rotated, scaled and with noise: 1,440 in train and 360 in val.

    The pixels are the same in every call. A complete folder is kept. DataError if `folder` holds something else.
    """
    return prepared_folder.write(folder, _DATASET, "drawn", lambda: _files(_drawn_digits()))


def _sklearn_digits() -> DigitImages:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for grey, label in zip(digits.images, digits.target, strict=True):
        image = Image.fromarray(np.rint(grey * (255 / 16)).astype(np.uint8))  # stored as 0..16
        yield image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), int(label)


def _drawn_digits() -> DigitImages:
    """Drawn digits about as difficult as handwriting; the ranges were chosen by eye."""
    random = np.random.default_rng(_DRAWN_SEED)
    canvas = 4 * SIDE  # drawn large, then reduced: smooth edges
    for label in range(10):
        for _ in range(_DRAWN_PER_CLASS):
            font = _font(round(canvas * random.uniform(0.55, 0.9)))
            image = Image.new("L", (canvas, canvas))
            centre = canvas / 2 + random.uniform(-0.1, 0.1, size=2) * canvas
            ImageDraw.Draw(image).text(tuple(centre), str(label), fill=255, font=font, anchor="mm")
            rotated = image.rotate(random.uniform(-20, 20), Image.Resampling.BICUBIC)
            small = np.asarray(rotated.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
            noisy = small * random.uniform(0.6, 1.0) + random.normal(0, 20, size=small.shape)
            yield Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)), label


@functools.cache  # reading the font takes longer than drawing
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _files(images: DigitImages) -> prepared_folder.Files:
    """The images as JPEG, every fifth of each class in val."""
    seen: Counter[int] = Counter()
    for image, label in images:
        seen[label] += 1
        split = "val" if seen[label] % _VAL_EVERY == 0 else "train"
        content = io.BytesIO()
        image.convert("RGB").save(content, "JPEG", quality=_JPEG_QUALITY)
        yield f"{split}/{label}/{seen[label] - 1:04d}.jpg", content.getvalue()
