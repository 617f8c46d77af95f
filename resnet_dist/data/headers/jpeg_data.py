"""Whether the data of a JPEG is complete, from its markers alone: no pixel is decoded.

Decoders treat damage in different ways. One that decodes only a region does not see what is below it, and libjpeg
smooths an image whose finer scans are missing, which depends on the region.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Markers (ITU-T T.81, table B.1): the byte after 0xFF.
_SEQUENTIAL = frozenset({0xC0, 0xC1})  # baseline and extended, with Huffman codes
_PROGRESSIVE = 0xC2
_FRAMES = _SEQUENTIAL | {_PROGRESSIVE}
_WHOLE = bytes([0, 63, 0])  # a scan of all coefficients with all bits
_START, _END, _SCAN, _LINES = 0xD8, 0xD9, 0xDA, 0xDC
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4}
_RESTARTS = range(0xD0, 0xD8)
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *_RESTARTS, 0xFF})
_REFUSED = _OTHER_FRAMES | _WITHOUT_LENGTH | {_START, _LINES}

_JPEG_MAGIC = bytes([0xFF, _START])
_NONE = 255  # no bit of a coefficient is there yet


def is_complete_jpeg(content: bytes) -> bool:
    """Whether an encoded image is a JPEG with all segments in order up to its end marker, and with all coefficients.

    False also for rare kinds of JPEG. Damage between the markers is not seen: no case was found that
    decoders treat differently (docs/data.md, Decoders).
    """
    if not content.startswith(_JPEG_MAGIC):
        return False
    missing: dict[int, bytearray] = {}  # by component: the number of low bits that each coefficient lacks
    sequential, markers, offset, end = False, b"", 2, len(content) - 1
    while offset < end and content[offset] == 0xFF:
        marker = content[offset + 1]
        if marker == _END:
            return bool(missing) and not any(any(lacks) for lacks in missing.values())
        if marker in _REFUSED:
            return False
        after = offset + 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
        if marker in _FRAMES:
            if missing:
                return False
            sequential = marker in _SEQUENTIAL
            missing = {component: bytearray([_NONE]) * 64 for component in content[offset + 10 : after : 3]}
        elif marker == _SCAN:
            header = content[offset + 4 : after]
            if not _take_scan(header, missing) or (sequential and not header.endswith(_WHOLE)):
                return False
            markers = markers or _markers(content)
            while (after := markers.find(1, after)) >= 0 and content[after + 1] in _RESTARTS:
                after += 2
            if after < 0:
                return False
        offset = after
    return False


def _markers(content: bytes) -> bytes:
    """1 at each byte of the data of a scan at which a marker begins: 0xFF without a stuffed 0 after it."""
    values = np.frombuffer(content, dtype=np.uint8)
    found: NDArray[np.bool_] = values[:-1] == 0xFF
    found &= values[1:] != 0
    return found.tobytes()


def _take_scan(header: bytes, missing: dict[int, bytearray]) -> bool:
    """Take the bits of a scan out of those that are missing (T.81, B.2.3); False if the scan is out of order."""
    if not header or len(header) != 4 + 2 * header[0]:
        return False
    first, last, bits = header[-3:]
    before, now = bits >> 4 or _NONE, bits & 15
    for component in header[1:-3:2]:
        lacks = missing.get(component)
        if lacks is None or lacks[first : last + 1] != bytes([before]) * (last + 1 - first):
            return False
        lacks[first : last + 1] = bytes([now]) * (last + 1 - first)
    return True
