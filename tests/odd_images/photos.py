"""The picture that the collection encodes."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 45, 71


@functools.cache
def photo(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Smooth colours, edges and noise, RGB."""
    random = np.random.default_rng(height * width)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = random.integers(0, 256, 3)
    pixels += random.integers(-12, 13, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def planes(mode: str) -> list[NDArray[np.uint8]]:
    """The components of the photo in another mode of Pillow."""
    return [np.array(plane) for plane in photo().convert(mode).split()]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A file of Pillow's."""
    stream = io.BytesIO()
    image.copy().save(stream, kind, **options)  # Pillow leaves traces of saving in an image
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    """An EXIF block with an orientation."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block
