"""Size and kind of an image from its header, and a check that it is complete.

Every file of a data set is read once before training. Parsing the header of a JPEG or PNG here takes one small read and
is several times faster than opening the file with an image library. Other formats are rare: Pillow opens them.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from resnet_dist.data.index import Kind
from resnet_dist.errors import DataError

Read = Callable[[int, int], bytes]  # (number of bytes, offset) -> bytes of an encoded image; fewer at its end

_HEAD_BYTES = 4096  # contains the frame header of most files, unless a thumbnail or a colour profile precedes it
_TAIL_BYTES = 64  # some programs write a few bytes after the end marker

# JPEG markers (ITU-T T.81, table B.1): the byte after 0xFF.
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 without DHT, JPG and DAC
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM, RST0..7

_JPEG_MAGIC = b"\xff\xd8"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">8xI4sIIB4xI")  # magic; length, type, width, height, bit depth, 4 more, checksum


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

    Raises DataError if the file is missing, empty, truncated or not an image.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a FIFO would wait for a writer
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(path, "is not a file: delete it")
        return header_of(path, status.st_size, lambda num, offset: os.pread(descriptor, num, offset))
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def header_of(name: str, num_bytes: int, read: Read) -> Header:
    """The header of the encoded image `name` of `num_bytes` bytes.

    Raises DataError as `image_header` does, and OSError from `read`.
    """
    if num_bytes == 0:
        raise DataError(name, "is empty (0 bytes): copy it again or delete it")
    head, tail = read(_HEAD_BYTES, 0), read(_TAIL_BYTES, max(0, num_bytes - _TAIL_BYTES))
    size, kind = None, Kind.ORDINARY
    if head.startswith(_JPEG_MAGIC):
        size = _JpegFile(name, read, num_bytes, head).size()
    elif head.startswith(_PNG_MAGIC):
        if b"IEND" not in tail:  # the last chunk of every PNG
            raise DataError(name, _truncated(num_bytes))
        size = _png_size(head)
    if size is None:
        size, kind = _size_by_pillow(name, read(num_bytes, 0)), Kind.PILLOW
    return Header(*size, kind, 1, num_bytes, tail_of(tail))


def tail_of(content: bytes | memoryview) -> int:
    """The crc32 of the last 64 bytes of an encoded image."""
    return zlib.crc32(content[-_TAIL_BYTES:])


def _truncated(num_bytes: int) -> str:
    return f"is truncated: no end marker in its {num_bytes} bytes; copy it again or delete it"


def _png_size(head: bytes) -> tuple[int, int] | None:
    """(height, width) from the first chunk of a PNG (ISO 15948, 11.2.2); None if it is unusual: Pillow decides."""
    length, kind, width, height, depth, checksum = _PNG_HEADER.unpack_from(head.ljust(_PNG_HEADER.size))
    if (length, kind) != (13, b"IHDR") or checksum != zlib.crc32(head[12:29]) or depth > 8 or not width * height:
        return None
    return height, width


def _size_by_pillow(path: str, content: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height, mode = image.width, image.height, image.mode
    except UnidentifiedImageError as error:
        raise DataError(path, "is not an image; delete it or restore the image") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(path, f"cannot be read as an image: {error}") from error
    if mode.startswith(("I", "F")):
        # Decoders convert 16 bits to 8 in different ways.
        raise DataError(path, f"has more than 8 bits a channel (Pillow's mode {mode}); convert it to 8 bits")
    return height, width


class _JpegFile:
    """A JPEG file as a sequence of segments, read through a window that starts at the file's beginning."""

    def __init__(self, path: str, read: Read, num_bytes: int, head: bytes) -> None:
        self._path, self._read, self._num_bytes = path, read, num_bytes
        self._window, self._window_start = head, 0

    def size(self) -> tuple[int, int]:
        """(height, width) from the frame header. Raises DataError if there is none, or no end marker."""
        offset = 2
        while True:
            if self._bytes(offset, 1)[0] != 0xFF:
                raise DataError(self._path, f"is a broken JPEG: no marker at byte {offset}; replace or delete it")
            marker = self._bytes(offset + 1, 1)[0]
            if marker == 0xFF:  # fill byte
                offset += 1
            elif marker in _WITHOUT_LENGTH:
                offset += 2
            elif marker in _FRAMES:
                break
            elif marker in (_START, _END, _SCAN):
                raise DataError(self._path, "is a broken JPEG: no frame header before its data; replace or delete it")
            else:
                offset += 2 + max(2, int.from_bytes(self._bytes(offset + 2, 2), "big"))
        # Marker (2 bytes), length (2), precision (1), height (2), width (2).
        frame = self._bytes(offset + 5, 4)
        height, width = int.from_bytes(frame[:2], "big"), int.from_bytes(frame[2:], "big")
        if height == 0 or width == 0:
            raise DataError(self._path, f"is a JPEG of {height} x {width} pixels; replace or delete it")
        if not self._has_end(after=offset):
            raise DataError(self._path, _truncated(self._num_bytes))
        return height, width

    def _bytes(self, offset: int, num: int) -> bytes:
        if offset + num > self._num_bytes:
            raise DataError(self._path, _truncated(self._num_bytes))
        if offset + num > self._window_start + len(self._window):
            self._window, self._window_start = self._read(_HEAD_BYTES, offset), offset
        start = offset - self._window_start
        return self._window[start : start + num]

    def _has_end(self, after: int) -> bool:
        end_marker = bytes([0xFF, _END])
        tail_start = max(after, self._num_bytes - _TAIL_BYTES)
        if end_marker in self._read(_TAIL_BYTES, tail_start):
            return True
        # Some files are padded. In compressed data 0xFF is always followed by 0, so these bytes are an end marker.
        return end_marker in self._read(self._num_bytes - after, after)
