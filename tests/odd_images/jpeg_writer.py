"""JPEG files of kinds that Pillow does not write: any sampling, component ids, scans, and lossless ones.

Source: ITU-T T.81, annexes B (markers), F (sequential), H (lossless), K (tables).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Planes = Sequence[NDArray[np.uint8]]
Table = dict[int, tuple[int, int]]  # symbol -> (code, number of bits)

_LOSSLESS_CATEGORIES = bytes([0, 0, 0, 9, *[0] * 12])  # DHT: nine codes of four bits, for differences below 256


def segment(marker: int, content: bytes) -> bytes:
    """A marker segment."""
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def adobe(transform: int) -> bytes:
    """The APP14 segment of Adobe's programs. 0: RGB or CMYK; 1: YCbCr; 2: YCCK."""
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")


def write(
    planes: Planes,
    sampling: Sequence[tuple[int, int]],
    *,
    head: bytes = JFIF,
    ids: Sequence[int] = (1, 2, 3, 4),
    marker: int = 0xC0,
    interleaved: bool = True,
    wide_tables: bool = False,
) -> bytes:
    """A sequential JPEG. `planes`: the components at full size; `sampling`: horizontal and vertical factor of each.

    `wide_tables`: quantisation tables of 16 bits, which need `marker` 0xC1.
    """
    height, width = planes[0].shape
    most_h, most_v = (max(factor[axis] for factor in sampling) for axis in (0, 1))
    columns, rows = -(-width // (8 * most_h)), -(-height // (8 * most_v))  # of units that hold all components
    table = np.full(64, 8)
    quantised = b"\x10" + table.astype(">u2").tobytes() if wide_tables else b"\0" + bytes(table.tolist())
    components = b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in zip(ids, sampling, strict=False))
    frame = b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes([len(planes)]) + components
    tables, codes = _standard_tables()
    out = b"\xff\xd8" + head + segment(0xDB, quantised) + segment(marker, frame) + tables
    blocks = []
    for plane, (h, v) in zip(planes, sampling, strict=True):
        small = _reduced(plane, most_h // h, most_v // v)
        bottom, right = rows * v * 8 - small.shape[0], columns * h * 8 - small.shape[1]
        blocks.append(_coefficients(np.pad(small, ((0, bottom), (0, right)), "edge")) // 8)
    everything = range(len(planes))
    for scan in [list(everything)] if interleaved else [[number] for number in everything]:
        bits = _Bits()
        last = dict.fromkeys(scan, 0)
        if len(scan) > 1:
            order = [
                (number, row * sampling[number][1] + y, column * sampling[number][0] + x)
                for row in range(rows)
                for column in range(columns)
                for number in scan
                for y in range(sampling[number][1])
                for x in range(sampling[number][0])
            ]
        else:  # only the blocks that the image needs
            h, v = sampling[scan[0]]
            down, across = -(-height * v // (8 * most_v)), -(-width * h // (8 * most_h))
            order = [(scan[0], y, x) for y in range(down) for x in range(across)]
        for number, y, x in order:
            block = blocks[number][y, x]
            last[number] = _block(bits, codes, block, last[number])
        selectors = b"".join(bytes([ids[number], 0]) for number in scan)
        out += segment(0xDA, bytes([len(scan)]) + selectors + b"\0\x3f\0") + bits.flushed()
    return out + b"\xff\xd9"


def write_lossless(plane: NDArray[np.uint8]) -> bytes:
    """A lossless grey JPEG (SOF3): each pixel minus the one to its left, the first of a row minus the one above."""
    height, width = plane.shape
    values = plane.astype(int)
    differences = np.diff(values, axis=1, prepend=np.vstack([[[128]], values[:-1, :1]]))
    bits = _Bits()
    for difference in differences.ravel().tolist():
        category = abs(difference).bit_length()
        bits.add(category, 4)
        bits.add(difference if difference > 0 else difference + (1 << category) - 1, category)
    frame = b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\1\1\x11\0"
    table = b"\0" + _LOSSLESS_CATEGORIES + bytes(range(9))
    scan = segment(0xDA, b"\1\1\0\1\0\0") + bits.flushed()
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, table) + scan + b"\xff\xd9"


def _reduced(plane: NDArray[np.uint8], across: int, down: int) -> NDArray[np.uint8]:
    """The plane with the mean of each down × across pixels."""
    return np.array(Image.fromarray(plane).reduce((across, down)))


def _coefficients(plane: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int [rows, columns, 64] of blocks in zigzag order."""
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
    blocks = plane.reshape(rows, 8, columns, 8).swapaxes(1, 2) - 128.0
    steps = np.arange(8)
    basis = np.sqrt(np.where(steps == 0, 1, 2) / 8)[:, None] * np.cos((2 * steps + 1) * steps[:, None] * np.pi / 16)
    found = np.rint(basis @ blocks @ basis.T).astype(np.int64)
    diagonals = sorted(((y, x) for y in range(8) for x in range(8)), key=_zigzag)
    return np.stack([found[:, :, y, x] for y, x in diagonals], axis=-1)


def _zigzag(place: tuple[int, int]) -> tuple[int, int]:
    y, x = place
    return y + x, y if (y + x) % 2 else x


def _block(bits: _Bits, codes: tuple[Table, Table], block: NDArray[np.int64], last: int) -> int:
    """Append a block; returns its first coefficient."""
    first, *others = block.tolist()
    _number(bits, codes[0], 0, first - last)
    zeros = 0
    for value in others:
        if value == 0:
            zeros += 1
            continue
        while zeros > 15:
            bits.add(*codes[1][0xF0])
            zeros -= 16
        _number(bits, codes[1], zeros << 4, value)
        zeros = 0
    if zeros:
        bits.add(*codes[1][0])
    return int(first)


def _number(bits: _Bits, table: Table, zeros: int, value: int) -> None:
    category = abs(value).bit_length()
    bits.add(*table[zeros | category])
    bits.add(value if value > 0 else value + (1 << category) - 1, category)


class _Bits:
    def __init__(self) -> None:
        self._text: list[str] = []

    def add(self, value: int, num: int) -> None:
        if num:
            self._text.append(f"{value:0{num}b}")

    def flushed(self) -> bytes:
        """All bits in whole bytes, with a zero byte after each 0xFF."""
        text = "".join(self._text)
        text += "1" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


@functools.cache
def _standard_tables() -> tuple[bytes, tuple[Table, Table]]:
    """The DHT segments and codes of luminance in annex K, from a file that Pillow writes with them."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    content, found, offset = stream.getvalue(), b"", 2
    codes = []
    while content[offset + 1] != 0xDA:
        end = offset + 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
        if content[offset + 1] == 0xC4:
            found += content[offset:end]
            codes.append(_codes(content[offset + 5 : end]))
        offset = end
    return found, (codes[0], codes[1])


def _codes(table: bytes) -> Table:
    counts, symbols = table[:16], iter(table[16:])
    codes: Table = {}
    code = 0
    for length, count in enumerate(counts, 1):
        for _ in range(count):
            codes[next(symbols)] = (code, length)
            code += 1
        code <<= 1
    return codes
