from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from resnet_dist.data.headers.jpeg_data import is_complete_jpeg

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
SCAN, END = b"\xff\xda", b"\xff\xd9"


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


BASELINE, PROGRESSIVE = jpeg(), jpeg(progressive=True)


def scans(content: bytes) -> list[bytes]:
    """The parts of a JPEG: all before its first scan, and each scan with the tables before the next one."""
    first, *others = content.removesuffix(END).split(SCAN)
    return [first, *(SCAN + other for other in others)]


@pytest.mark.parametrize(
    "content",
    [
        BASELINE,
        PROGRESSIVE,
        jpeg("L"),
        jpeg("L", progressive=True),
        jpeg(subsampling=0),
        jpeg(restart_marker_blocks=2),
        jpeg(comment=b"a comment", icc_profile=bytes(70_000)),
        jpeg(exif=b"Exif\0\0" + jpeg(quality=5)),  # as a thumbnail
        BASELINE + b"\0" * 1000,
    ],
    ids=["baseline", "progressive", "grey", "grey progressive", "4:4:4", "restarts", "notes", "thumbnail", "padded"],
)
def test_a_whole_jpeg_is_complete(content: bytes) -> None:
    assert is_complete_jpeg(content)


def with_marker(code: int) -> bytes:
    middle = (BASELINE.index(SCAN) + len(BASELINE)) // 2
    return BASELINE[:middle] + bytes([0xFF, code]) + BASELINE[middle + 2 :]


@pytest.mark.parametrize("code", [0x01, 0xC0, 0xC4, 0xD8, 0xDA, 0xDB, 0xDC, 0xE0, 0xFE, 0xFF])
def test_a_marker_within_the_data_is_found(code: int) -> None:
    assert not is_complete_jpeg(with_marker(code))


def test_missing_doubled_and_exchanged_scans_are_found() -> None:
    parts = scans(PROGRESSIVE)
    assert len(parts) > 5
    for number in range(1, len(parts)):
        assert not is_complete_jpeg(b"".join([*parts[:number], *parts[number + 1 :], END]))
        assert not is_complete_jpeg(b"".join([*parts[: number + 1], *parts[number:], END]))
    assert is_complete_jpeg(b"".join([*parts, END]))
    refining = [*parts[:-1][:1], parts[-1], *parts[1:-1]]  # the last one first
    assert not is_complete_jpeg(b"".join([*refining, END]))


@pytest.mark.parametrize("code", [0xC0, 0xC1])
def test_the_scans_of_a_progressive_jpeg_in_another_frame_are_found(code: int) -> None:
    assert not is_complete_jpeg(PROGRESSIVE.replace(b"\xff\xc2", bytes([0xFF, code])))
    assert is_complete_jpeg(BASELINE.replace(b"\xff\xc0", bytes([0xFF, code])))


def test_two_frames_are_not_one_jpeg() -> None:
    start = BASELINE.index(b"\xff\xc0")
    frame = BASELINE[start : start + 2 + int.from_bytes(BASELINE[start + 2 : start + 4], "big")]
    assert not is_complete_jpeg(BASELINE[:start] + frame + BASELINE[start:])


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"404 not found", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_jpeg_is_not_complete(content: bytes) -> None:
    assert not is_complete_jpeg(content)


def test_a_jpeg_that_is_cut_anywhere_is_not_complete() -> None:
    for content in (BASELINE, PROGRESSIVE):
        assert not any(is_complete_jpeg(content[:length]) for length in range(len(content) - 1))


@given(st.binary(max_size=40), st.integers(0, len(PROGRESSIVE)))
@example(b"\xff\xda\x00\x06\x00\x05\x02\x00", 158)
def test_no_content_is_too_odd(changed: bytes, place: int) -> None:
    is_complete_jpeg(PROGRESSIVE[:place] + changed + PROGRESSIVE[place + len(changed) :])
