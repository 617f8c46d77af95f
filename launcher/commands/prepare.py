"""A small data set without a download: handwritten digits as an image folder, and the accuracy of classical methods.

scikit-learn includes 1,797 digits of 8 × 8 pixels (UCI's Optical Recognition of Handwritten Digits). Without it, digits
are drawn with Pillow's font. Both are written as folder/train/<0..9>/NNNN.jpg and folder/val/<0..9>/NNNN.jpg.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from resnet_dist.errors import DataError, MissingPackage

SIDE = 32  # pixels of a written image
_JPEG_QUALITY = 95
_VAL_EVERY = 5  # every fifth image of each class goes to val: 355 of scikit-learn's 1,797, 360 of the 1,800 drawn
_MARKER = "digits.json"  # written last, with the content's source, counts and hash

_DRAWN_PER_CLASS = 180
_DRAWN_SEED = 0

DigitImages = Iterable[tuple[Image.Image, int]]  # images and labels


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
    counts = _marker(folder)
    return folder, f"{label}: {counts['train']} images for training, {counts['val']} for evaluation"


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's handwritten digits, 32 × 32 pixels, as 1,442 JPEGs in train and 355 in val.

    A complete folder is kept. MissingPackage without scikit-learn; DataError if `folder` holds something else.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingPackage("data.root", "scikit-learn", "pip install 'resnet-launcher[demo]'")
    return _write(folder, "scikit-learn", _sklearn_digits)


def write_drawn_digits(folder: Path) -> Path:
    """Draw 1,800 digits (180 of each), shifted, rotated, scaled and with noise: 1,440 in train and 360 in val.

    The pixels are the same in every call. A complete folder is kept. DataError if `folder` holds something else.
    """
    return _write(folder, "drawn", _drawn_digits)


def classical_baselines(folder: Path) -> dict[str, float]:
    """Top-1 accuracy on val of two classical methods trained on the pixels of train, for comparison with a network.

    k_nearest_neighbours  k of 1..5 with the best 5-fold cross-validation on train (`k` in the result)
    logistic_regression   multinomial, L2, scikit-learn's default strength

    MissingPackage without scikit-learn.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingPackage("data.root", "scikit-learn", "pip install 'resnet-launcher[demo]'")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    train_pixels, train_labels = _pixels(folder / "train")
    val_pixels, val_labels = _pixels(folder / "val")

    def cross_validated(k: int) -> float:
        return float(cross_val_score(KNeighborsClassifier(k), train_pixels, train_labels, cv=5).mean())

    k = max(range(1, 6), key=cross_validated)
    nearest = KNeighborsClassifier(k).fit(train_pixels, train_labels)
    logistic = LogisticRegression(max_iter=1000).fit(train_pixels, train_labels)
    return {
        "k": float(k),
        "k_nearest_neighbours": float(nearest.score(val_pixels, val_labels)),
        "logistic_regression": float(logistic.score(val_pixels, val_labels)),
    }


def _pixels(split: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Grey pixels in 0..1, float64 [n, side²], and labels, int64 [n], of one split."""
    files = sorted(split.glob("*/*.jpg"))
    if not files:
        raise DataError(str(split), "has no CLASS/*.jpg; run `python -m launcher prepare` first")
    pixels = [np.asarray(Image.open(file).convert("L"), dtype=np.float64).ravel() / 255 for file in files]
    return np.stack(pixels), np.array([int(file.parent.name) for file in files], dtype=np.int64)


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


def _write(folder: Path, source: str, images: Callable[[], DigitImages]) -> Path:
    """Write images and marker to a temporary folder, then rename it to `folder`."""
    if folder.exists():
        if _is_complete(folder, source):
            return folder
        is_ours = (folder / _MARKER).is_file()
        if not is_ours and any(folder.iterdir()):
            raise DataError(str(folder), "is not empty and was not written by `prepare`; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        new, old = temporary / "new", temporary / "old"
        counts = _write_image_folder(new, images())
        marker = {"source": source, **counts, "sha256": _digest(new)}
        (new / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(temporary)
    return folder


def _write_image_folder(folder: Path, images: DigitImages) -> dict[str, int]:
    """Write images as JPEG, every fifth of each class to val; returns the number of images of each split."""
    counts = {"train": 0, "val": 0}
    seen: Counter[int] = Counter()
    for image, label in images:
        seen[label] += 1
        split = "val" if seen[label] % _VAL_EVERY == 0 else "train"
        file = folder / split / str(label) / f"{seen[label] - 1:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.convert("RGB").save(file, quality=_JPEG_QUALITY)
        counts[split] += 1
    return counts


def _is_complete(folder: Path, source: str) -> bool:
    marker = _marker(folder)
    return marker.get("source") == source and marker.get("sha256") == _digest(folder)


def _marker(folder: Path) -> dict[str, object]:
    """The content of the marker; empty if there is no readable one."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _digest(folder: Path) -> str:
    """sha256 over the names and bytes of all images."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*/*/*.jpg")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
