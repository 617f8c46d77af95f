"""What an image file is, from its header: its size, its orientation, and whether all decoders give the same pixels.

It is decided once, when the index is made, for every decoder. Most files need two small reads and no image library:
the headers of JPEG and PNG are read here, several times faster than Pillow opens a file. Pillow opens all others.
"""

from __future__ import annotations

import os
import stat
import zlib
from functools import partial
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from resnet_dist.data.decoding.pillow import max_pixels, open_image, orientation_in, orientation_of
from resnet_dist.data.headers import jpeg as jpeg_headers
from resnet_dist.data.headers import png as png_headers
from resnet_dist.data.headers.jpeg import Read
from resnet_dist.data.index.table import Kind
from resnet_dist.data.names import why
from resnet_dist.errors import DataError

_HEAD_BYTES = 4096  # contains the frame header of most files, unless a thumbnail or a colour profile precedes it
_TAIL_BYTES = 64  # some programs write a few bytes after the end marker

# Pillow's modes that become 8-bit RGB in one clear way. Others: I and F (more bits), LAB, HSV.
_CLEAR_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_ORDINARY, _PILLOW = Kind.ORDINARY, Kind.PILLOW  # looking up a member of an enum takes time


class Header(NamedTuple):
    """What the index records about an encoded image; see `Index`. Sizes are without EXIF orientation."""

    height: int
    width: int
    kind: Kind
    orientation: int
    num_bytes: int
    tail: int


def image_header(path: str) -> Header:
    """The header of the image stored at `path`. Pixels are not decoded.

    Raises DataError if the file is missing, empty, truncated or not an image that becomes 8-bit RGB in a clear way.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a FIFO would wait for a writer
    except OSError as error:
        raise DataError(path, f"cannot be read: {why(error)}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(path, "is not a regular file; delete it")
        return header_of(path, status.st_size, partial(os.pread, descriptor))
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def header_of(name: str, num_bytes: int, read: Read) -> Header:
    """The header of the encoded image `name` of `num_bytes` bytes.

    Raises DataError as `image_header` does, and OSError from `read`.
    """
    if num_bytes == 0:
        raise DataError(name, "is empty (0 bytes); copy it again or delete it")
    head = read(_HEAD_BYTES, 0)
    tail = head[-_TAIL_BYTES:] if num_bytes <= len(head) else read(_TAIL_BYTES, num_bytes - _TAIL_BYTES)
    if head.startswith(jpeg_headers.MAGIC):
        height, width, ordinary, orientation, frame = jpeg_headers.jpeg_header(name, num_bytes, head, read)
        # Some files are padded. In compressed data 0xFF is always followed by 0, so these bytes are an end marker.
        ends = tail.find(jpeg_headers.END, max(0, frame - num_bytes + len(tail))) >= 0
        if not ends and jpeg_headers.END not in read(num_bytes - frame, frame):
            raise DataError(name, jpeg_headers.truncated(num_bytes))
    elif head.startswith(png_headers.MAGIC):
        height, width, may_be_turned = png_headers.png_header(name, num_bytes, head, read)
        ordinary, orientation = False, orientation_in(name, read(num_bytes, 0)) if may_be_turned else 1
    else:
        height, width, orientation = _by_pillow(name, read(num_bytes, 0))
        ordinary = False
    most = max_pixels()
    if most is not None and height * width > most:
        raise DataError(name, f"is {height:,} x {width:,} pixels, above Pillow's limit of {most:,}; make it smaller")
    return Header(height, width, _ORDINARY if ordinary else _PILLOW, orientation, num_bytes, zlib.crc32(tail))


def tail_of(content: bytes | memoryview) -> int:
    """The crc32 of the last 64 bytes of an encoded image."""
    return zlib.crc32(content[-_TAIL_BYTES:])


def _by_pillow(name: str, content: bytes) -> tuple[int, int, int]:
    """(height, width, orientation) of an image that is neither JPEG nor PNG."""
    try:
        with open_image(content) as image:
            _check_clear(name, image)
            # Pillow turns a TIFF when it reads its pixels, and tells its size after that.
            return image.height, image.width, 1 if image.format == "TIFF" else orientation_of(image)
    except UnidentifiedImageError as error:
        raise DataError(name, "is not an image of a known format; delete it or restore the image") from error
    except DataError:
        raise
    except MemoryError as error:
        raise MemoryError(f"while reading {name}") from error
    except Exception as error:  # which one depends on the format
        raise DataError(name, f"cannot be read as an image: {error}") from error


def _check_clear(name: str, image: Image.Image) -> None:
    """Raise DataError for an image that becomes 8-bit RGB in several ways, of which decoders choose different ones."""
    tiles = getattr(image, "tile", [])
    codec, arguments = (tiles[0].codec_name, tiles[0].args) if tiles else ("", None)
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    if codec.startswith("ppm") and isinstance(arguments, tuple) and arguments[-1] != 255:
        raise DataError(name, f"has a maximum of {arguments[-1]}, not 255; convert it to 8 bits")
    if image.mode.startswith(("I", "F")) or (isinstance(raw, str) and ";16" in raw):
        raise DataError(name, f"has more than 8 bits a channel (Pillow's mode {image.mode}); convert it to 8 bits")
    if image.mode not in _CLEAR_MODES:
        raise DataError(name, f"has colours of Pillow's mode {image.mode}; convert it to RGB")
