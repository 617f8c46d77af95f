"""Reads the chunks of a PNG: its size, and whether it is complete."""

from __future__ import annotations

import struct
import zlib

from resnet_dist.data.headers.jpeg import Read, truncated
from resnet_dist.errors import DataError

MAGIC = b"\x89PNG\r\n\x1a\n"

_WINDOW_BYTES = 4096  # read at once
_CHUNK = struct.Struct(">I4s")  # length of the content, type; content and a checksum of 4 bytes follow
_HEADER = struct.Struct(">IIBB3x4x")  # width, height, bits, colour type, others; checksum
_HEADER_END = len(MAGIC) + _CHUNK.size + _HEADER.size

# Bits and colour types (ISO 15948, table 11.1): grey 0, RGB 2, palette 3, grey and alpha 4, RGB and alpha 6.
_KNOWN = frozenset({(1, 0), (2, 0), (4, 0), (8, 0), (8, 2), (1, 3), (2, 3), (4, 3), (8, 3), (8, 4), (8, 6)})
_DEEP = frozenset({(16, 0), (16, 2), (16, 4), (16, 6)})
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_KEYWORDS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # of texts that Pillow searches for an orientation
_KEYWORD_BYTES = max(map(len, _KEYWORDS))


def png_header(name: str, num_bytes: int, head: bytes, read: Read) -> tuple[int, int, bool]:
    """(height, width, whether it may have an EXIF orientation). Data are not read.

    `head` is the beginning of the file, `read` as in `header_of`.

    Raises DataError for a file that is cut or damaged, or has more than 8 bits a channel. Checksums are not compared,
    except for that of the header.
    """
    if len(head) < _HEADER_END:
        raise DataError(name, truncated(num_bytes))
    length, kind = _CHUNK.unpack_from(head, len(MAGIC))
    width, height, bits, colour = _HEADER.unpack_from(head, len(MAGIC) + _CHUNK.size)
    start, end = len(MAGIC) + 4, _HEADER_END - 4
    whole = zlib.crc32(head[start:end]).to_bytes(4, "big") == head[end:_HEADER_END]
    if (length, kind) != (13, b"IHDR") or not whole or not width * height:
        raise DataError(name, "is a broken PNG: its header is damaged; replace or delete it")
    if (bits, colour) in _DEEP:
        raise DataError(name, f"has more than 8 bits a channel ({bits}); convert it to 8 bits")
    if (bits, colour) not in _KNOWN:
        raise DataError(name, f"is a broken PNG of {bits} bits and colour type {colour}; replace or delete it")
    return height, width, _has_exif(name, num_bytes, head, read)


def _has_exif(name: str, num_bytes: int, head: bytes, read: Read) -> bool:
    """Whether a chunk may have an EXIF orientation. Raises DataError unless there are chunks up to the last one."""
    window, start, at = head, 0, _HEADER_END
    kind, found = b"", False
    while kind != b"IEND":
        if at + _CHUNK.size + _KEYWORD_BYTES > len(window):
            start, at = start + at, 0
            window = read(_WINDOW_BYTES, start) if start < num_bytes else b""
        if len(window) < at + _CHUNK.size:
            raise DataError(name, truncated(num_bytes))
        length, kind = _CHUNK.unpack_from(window, at)
        found |= kind == b"eXIf" or (kind in _TEXTS and window.startswith(_KEYWORDS, at + _CHUNK.size))
        at += _CHUNK.size + length + 4
        if not kind.isalpha() or start + at > num_bytes:
            raise DataError(name, truncated(num_bytes))
    return found
