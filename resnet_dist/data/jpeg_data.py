"""Whether the data of a JPEG is complete, from its markers alone: no pixel is decoded.

Decoders treat damage in different ways: one that decodes only a region does not see what is below it, and one
smooths an image whose fine scans are missing where another does not.
"""

from __future__ import annotations

import re

# Markers (ITU-T T.81, table B.1): the byte after 0xFF.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive, with Huffman codes
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4}
_START, _END, _SCAN, _LINES = 0xD8, 0xD9, 0xDA, 0xDC
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD8), 0xFF})
_REFUSED = _OTHER_FRAMES | _WITHOUT_LENGTH | {_START, _LINES}

_IN_A_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # a marker that ends it: not a stuffed byte, not a restart
_ALL_COEFFICIENTS = (1 << 64) - 1


def is_complete(content: bytes) -> bool:
    """Whether the segments of a JPEG are in order up to its end marker, and its scans have all coefficients."""
    missing: dict[int, int] = {}  # by component: a bit for each coefficient that is not there in full
    offset, end = 2, len(content) - 1
    while offset < end and content[offset] == 0xFF:
        marker = content[offset + 1]
        if marker == _END:
            return bool(missing) and not any(missing.values())
        if marker in _REFUSED:
            return False
        after = offset + 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
        if marker in _FRAMES:
            if missing:
                return False
            missing = dict.fromkeys(content[offset + 10 : after : 3], _ALL_COEFFICIENTS)
        elif marker == _SCAN:
            first, last, bits = content[after - 3 : after].ljust(3)
            if bits & 15 == 0:  # up to the lowest bit
                there = (2 << last) - (1 << first)
                for component in content[offset + 5 : after - 3 : 2]:
                    missing[component] = missing.get(component, 0) & ~there
            following = _IN_A_SCAN.search(content, after)
            if following is None:
                return False
            after = following.start()
        offset = after
    return False
