from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resnet_dist.data.image_headers import image_size
from resnet_dist.errors import DataError

Photo = Callable[[int, int, int], NDArray[np.uint8]]


def encoded(pixels: NDArray[np.uint8], kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def jpeg(make_photo: Photo) -> bytes:
    return encoded(make_photo(60, 80, 0), quality=90)


@pytest.fixture
def size_of(tmp_path: Path) -> Callable[[bytes], tuple[int, int]]:
    def size(content: bytes) -> tuple[int, int]:
        file = tmp_path / "image.jpg"
        file.write_bytes(content)
        return image_size(str(file))

    return size


SizeOf = Callable[[bytes], tuple[int, int]]


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 90}),
        ("RGB", {"quality": 90, "progressive": True}),
        ("RGB", {"quality": 90, "subsampling": 0}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"exif": b"Exif\0\0" + bytes(9000)}),  # the frame header lies beyond the first read
        ("RGB", {"icc_profile": bytes(200_000)}),  # several segments
    ],
)
def test_size_of_jpegs_of_every_kind(mode: str, options: dict[str, Any], make_photo: Photo, size_of: SizeOf) -> None:
    assert size_of(encoded(make_photo(45, 71, 1), mode=mode, **options)) == (45, 71)


def test_exif_orientation_is_not_applied(make_photo: Photo, size_of: SizeOf) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert size_of(encoded(make_photo(45, 71, 1), exif=exif)) == (45, 71)


OTHER_FORMATS = [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("BMP", "RGB"), ("WEBP", "RGB")]


@pytest.mark.parametrize(("kind", "mode"), OTHER_FORMATS)
def test_size_of_other_formats_whatever_the_name_says(kind: str, mode: str, make_photo: Photo, size_of: SizeOf) -> None:
    assert size_of(encoded(make_photo(45, 71, 1), kind, mode)) == (45, 71)


def test_fill_bytes_and_padding_behind_the_end_are_allowed(jpeg: bytes, size_of: SizeOf) -> None:
    assert size_of(jpeg[:2] + b"\xff\xff\xff" + jpeg[2:]) == (60, 80)
    assert size_of(jpeg + bytes(10)) == (60, 80)
    assert size_of(jpeg + bytes(5000)) == (60, 80)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.999])
def test_a_cut_jpeg_is_found_wherever_it_is_cut(kept: float, jpeg: bytes, size_of: SizeOf) -> None:
    with pytest.raises(DataError, match="truncated: no end marker"):
        size_of(jpeg[: int(len(jpeg) * kept)])


def test_a_cut_png_is_found(make_photo: Photo, size_of: SizeOf) -> None:
    with pytest.raises(DataError, match="truncated"):
        size_of(encoded(make_photo(45, 71, 1), "PNG")[:-20])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1"])
def test_the_size_of_a_png_is_read_without_pillow(
    mode: str, make_photo: Photo, size_of: SizeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(make_photo(45, 71, 1), "PNG", mode)
    monkeypatch.delattr("resnet_dist.data.image_headers._size_by_pillow")
    assert size_of(content) == (45, 71)


@pytest.mark.parametrize("byte", [11, 14, 19, 23, 24, 31])  # length, type, width, height, depth, checksum
def test_a_png_whose_header_is_damaged_is_found(byte: int, make_photo: Photo, size_of: SizeOf) -> None:
    content = bytearray(encoded(make_photo(45, 71, 1), "PNG"))
    content[byte] ^= 0x55
    with pytest.raises(DataError, match=r"cannot be read as an image|is not an image"):
        size_of(bytes(content))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"404 not found\n" * 20, "is not an image"),
        (b"\xff\xd8 and so on", "no marker at byte 2"),
        (b"\xff\xd8\xff\xda\x00\x02" + bytes(50), "no frame header before its data"),
        (b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x00\x00\x10" + bytes(50) + b"\xff\xd9", "0 x 16 pixels"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, problem: str, tmp_path: Path, size_of: SizeOf) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        size_of(content)
    assert caught.value.path == str(tmp_path / "image.jpg")


def test_sixteen_bits_a_channel_are_refused(size_of: SizeOf) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5), 40_000, dtype=np.uint16)).save(stream, "PNG")
    with pytest.raises(DataError, match="convert it to 8 bits"):
        size_of(stream.getvalue())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read: No such file"):
        image_size(str(tmp_path / "gone.jpg"))


def test_no_file_stays_open(jpeg: bytes, size_of: SizeOf) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for content in (jpeg, jpeg[:100], b"text"):
        try:
            size_of(content)
        except DataError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
