"""A collection of odd image files, made by code: what users have, with the pixels or the error that is expected.

Every decoder and every source must agree with it. `odd_images()` is made once per process, in about a second.
"""

from __future__ import annotations

import functools
import io
import warnings
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from odd_images import jpegs, others

Pixels = NDArray[np.uint8]


class OddImage(NamedTuple):
    """An encoded image.

    name         names it in a test, and is a file name with a suffix that image folders know
    content      its bytes
    pixels       uint8 [height, width, 3], what Pillow reads; None if it must be refused
    problem      part of the message of the DataError that refuses it; empty if it has pixels
    refused_by   the header alone is enough to refuse it, or only decoding finds the damage
    orientation  EXIF orientation, 1 to 8
    turned       `pixels` with the orientation applied, as PIL.ImageOps.exif_transpose does
    """

    name: str
    content: bytes
    pixels: Pixels | None
    problem: str = ""
    refused_by: Literal["", "header", "decoder"] = ""
    orientation: int = 1
    turned: Pixels | None = None


@functools.cache
def odd_images() -> tuple[OddImage, ...]:
    """All images of the collection, those that are refused last. Names are unique."""
    good = [_read(name, content, turn) for name, (content, turn) in (jpegs.good() | others.good()).items()]
    refused = [
        OddImage(name, content, None, problem, by)
        for name, (content, problem, by) in (jpegs.refused() | others.refused()).items()
    ]
    return (*good, *refused)


def good_images() -> list[OddImage]:
    """Those with pixels."""
    return [image for image in odd_images() if image.pixels is not None]


def refused_images(by: Literal["header", "decoder"]) -> list[OddImage]:
    """Those that the header is enough to refuse, or only decoding."""
    return [image for image in odd_images() if image.refused_by == by]


def _read(name: str, content: bytes, orientation: int) -> OddImage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
        turned = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    return OddImage(name, content, pixels, orientation=orientation, turned=turned)
