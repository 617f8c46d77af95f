"""Photo-like JPEG files for the benchmarks of input: parts of scikit-learn's two photos, changed at random.

Real photos matter: the time that decoding takes depends on how well an image can be compressed. The files have about
500 × 375 pixels and 80 kB, a little less than ImageNet's mean of 110 kB.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

NUM_CLASSES = 10
_QUALITY = 93


def photo_folder(folder: Path, num_images: int, val_images: int = 20) -> Path:
    """Write folder/{train,val}/CLASS/NNNNN.jpg, unless they are there; the same files for the same numbers."""
    done = folder / f"complete-{num_images}-{val_images}"
    if not done.exists():
        for split, num in (("train", num_images), ("val", val_images)):
            for number in range(num):
                file = folder / split / f"class-{number % NUM_CLASSES}" / f"{number:05d}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(photo(number + (0 if split == "train" else num_images)))
        done.touch()
    return folder


def photo(number: int) -> bytes:
    """JPEG number `number`: a part of a photo, scaled, turned over and with changed colours and noise."""
    random = np.random.default_rng(number)
    photos = _photos()
    source = Image.fromarray(photos[number % len(photos)])
    scale = random.uniform(0.6, 1.0)
    width, height = round(source.width * scale), round(source.height * scale)
    left, top = random.integers(0, source.width - width + 1), random.integers(0, source.height - height + 1)
    part = source.crop((left, top, left + width, top + height))
    size = (round(random.normal(500, 40)), round(random.normal(375, 40)))
    part = part.resize((max(200, size[0]), max(150, size[1])), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    part = ImageEnhance.Brightness(part).enhance(random.uniform(0.7, 1.3))
    noisy = np.asarray(part, dtype=np.float32) + random.normal(0, 4, size=(part.height, part.width, 1))
    content = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(content, "JPEG", quality=_QUALITY)
    return content.getvalue()


@functools.cache
def _photos() -> list[NDArray[np.uint8]]:
    return list(load_sample_images().images)
