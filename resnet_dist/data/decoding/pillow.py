"""Opening images with Pillow: only the usual formats, and without its warnings.

Pillow warns about large images, damaged EXIF blocks and transparent palettes. Under `python -W error` that would be
errors: what happens to an image must not depend on Python's options.
"""

from __future__ import annotations

import functools
import io
import re
import warnings

from PIL import ExifTags, Image

# Others are no photographs, run other programs (EPS), or have no mark at their beginning (TGA).
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MODULES = r"PIL\."
_FILTER = ("ignore", None, Warning, re.compile(_MODULES), 0)  # as `warnings` stores it


def open_image(content: bytes) -> Image.Image:
    """The image in `content`; Pillow reads its pixels when they are used.

    Raises any Exception for content that it does not know or finds broken: which one depends on the format.
    """
    without_warnings()
    return Image.open(io.BytesIO(content), formats=_formats())


def orientation_in(name: str, content: bytes) -> int:
    """The EXIF orientation of the image `name`; 1 if Pillow cannot read it: then it cannot be decoded either."""
    try:
        with open_image(content) as image:
            return orientation_of(image)
    except MemoryError as error:
        raise MemoryError(f"while reading {name}") from error
    except Exception:  # which one depends on the damage
        return 1


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an image; 1 if it has none."""
    found = image.getexif().get(ExifTags.Base.Orientation)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def without_warnings() -> None:
    """Ignore warnings of Pillow's modules in this process. To be called each time, since others may set filters too.

    A filter is added and stays: `warnings.catch_warnings` is not made for threads.
    """
    if not warnings.filters or warnings.filters[0] != _FILTER:
        warnings.filterwarnings("ignore", module=_MODULES)


def max_pixels() -> int | None:
    """The number of pixels from which on Pillow refuses an image; None: no limit."""
    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


@functools.cache
def _formats() -> list[str]:
    """Those that this build of Pillow has."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]
