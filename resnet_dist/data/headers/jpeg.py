"""Reads the header of a JPEG: its size, how its colours are encoded, and its EXIF orientation."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable

from PIL import Image

from resnet_dist.data.decoding.pillow import orientation_in, without_warnings
from resnet_dist.errors import DataError

Read = Callable[[int, int], bytes]  # (number of bytes, offset) -> bytes of an encoded image; fewer at its end

MAGIC = b"\xff\xd8"
END = b"\xff\xd9"

_WINDOW_BYTES = 4096  # read at once
# Markers (ITU-T T.81, table B.1): the byte after 0xFF.
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # all, without DHT, JPG and DAC
_UNKNOWN_FRAMES = _FRAMES - _HUFFMAN_FRAMES - {0xC3, 0xC9, 0xCA}  # Pillow knows lossless and arithmetic coding
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM, RST0..7
_APP1, _APP14 = 0xE1, 0xEE
_SCAN, _SCAN_OR_LATE = b"\xff\xda", re.compile(rb"\xff[\xda\xe1\xee]")  # or APP1 or APP14
_UNUSUAL = _WITHOUT_LENGTH | {0xFF, _APP1, _APP14, 0xD8, 0xD9, 0xDA}  # fill byte; start, end, scan

_FRAME = struct.Struct(">BHHB")  # after marker and length: bits, height, width, components
_FRAME_BYTES = 4 + _FRAME.size + 3 * 4  # with up to four components

# Sampling factors (horizontal << 4 | vertical) of ordinary files: grey; 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1.
_SAMPLINGS = frozenset({b"\x11", *(bytes([luminance, 0x11, 0x11]) for luminance in (0x11, 0x21, 0x22, 0x12, 0x41))})
_RGB_IDS = b"RGB"
_YCBCR = (b"", b"\1")  # Adobe's number of the transform that other files have, too

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_ENTRY_BYTES = 12
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8}  # the usual types of an entry
_EXPECTED = {_ORIENTATION: (3, 1), 0x011A: (5, 1), 0x0128: (3, 1)}  # type and count; also of what Pillow needs for dpi


def jpeg_header(name: str, num_bytes: int, head: bytes, read: Read) -> tuple[int, int, bool, int, int]:
    """(height, width, ordinary, EXIF orientation, offset of the frame header), from the segments before the data.

    `head` is the beginning of the file, `read` as in `header_of`. All decoders give the same pixels for ordinary files.
    Raises DataError for a file that is cut, or is encoded in a way that Pillow does not decode.
    """
    window, start, at = head, 0, 2  # the window's offset in the file, and an offset in the window
    exif, xmp, ycbcr = b"", b"", True
    while True:  # a million files go through it: names are local, and common markers come first
        if at + _FRAME_BYTES > len(window):
            start, at = start + at, 0
            window = _window(name, num_bytes, start, read)
        if window[at] != 0xFF:
            raise DataError(name, f"is a broken JPEG: no marker at byte {start + at}; replace or delete it")
        marker = window[at + 1]
        if marker in _FRAMES:
            break
        if marker not in _UNUSUAL:
            at += 2 + (window[at + 2] << 8 | window[at + 3])
        elif marker in _WITHOUT_LENGTH:
            at += 2
        elif marker == 0xFF:  # fill byte
            at += 1
        elif marker in (_APP1, _APP14):
            end = at + 2 + (window[at + 2] << 8 | window[at + 3])
            content = window[at + 4 : end] if end <= len(window) else read(end - at - 4, start + at + 4)
            if marker == _APP14:
                ycbcr = not content.startswith(b"Adobe") or content[11:12] in _YCBCR
            elif content.startswith(_EXIF):
                exif += content[len(_EXIF) :]
            elif content.startswith(_XMP):
                xmp = content
            at = end
        else:
            raise DataError(name, "is a broken JPEG: no frame header before its data; replace or delete it")
    bits, height, width, components = _FRAME.unpack_from(window, at + 4)
    fields = window[at + 10 : at + 10 + 3 * components]  # id, sampling, table of each component
    if bits != 8 or height == 0 or width == 0 or components not in (1, 3, 4) or marker in _UNKNOWN_FRAMES:
        raise DataError(name, _refused_frame(marker, bits, height, width, components))
    orientation, usual = _orientation(exif, xmp) if exif or xmp else (1, True)
    if _has_late_segments(window, at) and _has_late_segments(read(_WINDOW_BYTES, start + at), 0):
        orientation, usual = orientation_in(name, read(num_bytes, 0)), False
    usual &= ycbcr and fields[1::3] in _SAMPLINGS and fields[::3] != _RGB_IDS
    return height, width, usual and marker in _HUFFMAN_FRAMES, orientation, start + at


def _has_late_segments(window: bytes, at: int) -> bool:
    """Whether EXIF or Adobe's segment is between the frame header at `at` and the data, or the data is not in reach."""
    found = _SCAN_OR_LATE.search(window, at)
    return found is None or found[0] != _SCAN


def _window(name: str, num_bytes: int, start: int, read: Read) -> bytes:
    window = read(_WINDOW_BYTES, start) if start < num_bytes else b""
    if window[:1] not in (b"", b"\xff"):
        raise DataError(name, f"is a broken JPEG: no marker at byte {start}; replace or delete it")
    if len(window) < _FRAME_BYTES:  # a whole file goes on with tables and data
        raise DataError(name, truncated(num_bytes))
    return window


def _refused_frame(marker: int, bits: int, height: int, width: int, components: int) -> str:
    if bits != 8:
        return f"is a JPEG of {bits} bits a channel; convert it to 8 bits"
    if height == 0 or width == 0:
        return f"is a JPEG of {height} x {width} pixels; replace or delete it"
    if marker in _UNKNOWN_FRAMES:
        return f"is a JPEG of a kind that is not decoded (marker FF{marker:02X}); convert it to a baseline JPEG"
    return f"is a JPEG of {components} components; convert it to RGB"


def truncated(num_bytes: int) -> str:
    """What is wrong with a file that ends too early."""
    return f"is truncated: no end marker in its {num_bytes:,} bytes; copy it again or delete it"


def _orientation(exif: bytes, xmp: bytes) -> tuple[int, bool]:
    """As PIL.ImageOps.exif_transpose sees it: the EXIF tag, else XMP's; 1 if it is absent or invalid.

    And whether the block is written as usual. If not, Pillow may refuse the whole image where other decoders do not.
    """
    found: object = 1
    usual = True
    try:
        found = _first_directory(exif)
    except (struct.error, KeyError, IndexError):
        usual = False
        without_warnings()
        with contextlib.suppress(Exception):
            block = Image.Exif()
            block.load(_EXIF + exif)
            found = block.get(_ORIENTATION)
    if found is None and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if isinstance(found, int) and 1 <= found <= 8 else 1, usual


def _first_directory(exif: bytes) -> int | None:
    """The orientation in a TIFF block's first directory (TIFF 6.0, section 2); None if it has none.

    Raises KeyError, IndexError or struct.error for what is not written as usual.
    """
    if not exif:
        return None
    order = {b"II*\0": "<", b"MM\0*": ">"}[exif[:4]]
    (directory,) = struct.unpack_from(f"{order}I", exif, 4)
    (num,) = struct.unpack_from(f"{order}H", exif, directory)
    found = None
    for number in range(num):
        tag, kind, count, value = struct.unpack_from(f"{order}HHII", exif, directory + 2 + _ENTRY_BYTES * number)
        num_bytes = count * _TYPE_BYTES[kind]
        if num_bytes > 4 and value + num_bytes > len(exif):  # `value` is an offset; Pillow reads no further
            raise IndexError(value)
        if (kind, count) != _EXPECTED.get(tag, (kind, count)):
            raise KeyError(tag)
        if tag == _ORIENTATION:
            found = value >> 16 if order == ">" else value & 0xFFFF
    return found
