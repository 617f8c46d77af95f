"""A small image folder of smooth JPEGs, whose pixels decoders agree on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, num: int = 24) -> str:
    """Write smooth JPEGs of two classes and of several sizes."""
    for number in range(num):
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        photo = coarse.resize((200 + 10 * (number % 5), 150 + 12 * (number % 7)), Image.Resampling.BICUBIC)
        file = folder / "train" / f"class-{number % 2}" / f"{number:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo.save(file, quality=90)
    return str(folder)
