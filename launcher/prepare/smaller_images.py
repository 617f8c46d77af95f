"""Images made smaller, so that a data set takes less space and less time to decode."""

from __future__ import annotations

import io

from PIL import Image

from resnet_dist.data.decoding.pillow import open_image

_ORIENTATION = 0x0112  # EXIF's tag


def smaller_jpeg(content: bytes, shorter_side: int, quality: int, orientation: int) -> bytes | None:
    """The image with a shorter side of `shorter_side` pixels, as JPEG; None if its own is not longer than that.

    The pixels are those that a decoder gives, as stored; `orientation`, EXIF's, is noted in the JPEG. Transparency is
    dropped. Raises any Exception for a broken image, as Pillow does.
    """
    image = open_image(content)
    factor = shorter_side / min(image.size)
    if factor >= 1:
        return None
    pixels = image if image.mode in ("L", "RGB") else image.convert("RGB")
    width, height = (max(shorter_side, round(side * factor)) for side in image.size)
    made, exif = io.BytesIO(), Image.Exif()
    if orientation != 1:
        exif[_ORIENTATION] = orientation
    resized = pixels.resize((width, height), Image.Resampling.BICUBIC)  # Pillow's is antialiased
    resized.save(made, "JPEG", quality=quality, exif=exif)
    return made.getvalue()
