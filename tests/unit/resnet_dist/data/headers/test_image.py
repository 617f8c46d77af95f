from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray
from odd_images import OddImage, good_images, refused_images
from PIL import Image

from resnet_dist.data.decoding.pillow import open_image
from resnet_dist.data.headers.image import Header, header_of, image_header, tail_of
from resnet_dist.data.headers.jpeg import jpeg_header
from resnet_dist.data.index.table import Kind
from resnet_dist.errors import DataError

Photo = Callable[[int, int, int], NDArray[np.uint8]]


def header(content: bytes) -> Header:
    """As of a file of that content, of which only what is asked for is read."""
    return header_of("image.jpg", len(content), lambda num, offset: content[offset : offset + num])


def id_of(image: OddImage) -> str:
    return image.name


@pytest.mark.parametrize("image", good_images(), ids=id_of)
def test_size_and_orientation_of_odd_images_are_pillows(image: OddImage) -> None:
    found = header(image.content)
    assert image.pixels is not None
    assert (found.height, found.width) == image.pixels.shape[:2]
    assert found.orientation == image.orientation
    assert (found.num_bytes, found.tail) == (len(image.content), tail_of(image.content))


@pytest.mark.parametrize("image", refused_images("header"), ids=id_of)
def test_what_is_broken_or_ambiguous_is_refused_by_its_header(image: OddImage) -> None:
    with pytest.raises(DataError) as caught:
        header(image.content)
    assert image.problem in caught.value.problem
    assert caught.value.path == "image.jpg"


@pytest.mark.parametrize("image", refused_images("decoder"), ids=id_of)
def test_damage_that_only_decoding_finds_passes_the_header(image: OddImage) -> None:
    assert header(image.content).kind in (Kind.ORDINARY, Kind.PILLOW)


RARE = ("cmyk", "ycck", "rgb-", "adobe-0", "adobe-2", "ids-rgb", "lossless", "arithmetic", "as-2", "mixed", "41", "31")


def test_only_common_jpegs_are_ordinary() -> None:
    ordinary = {image.name for image in good_images() if header(image.content).kind == Kind.ORDINARY}
    jpegs = {name for name in ordinary if name.startswith("jpeg-") and "exif" not in name}
    for name in ("baseline-444", "baseline-422", "baseline-420", "baseline-440", "baseline-411", "grey", "adobe-1"):
        assert f"jpeg-{name}.jpg" in jpegs
    for name in ("progressive-420", "restarts-422", "scans-420", "icc", "mpo", "text-behind", "1x1", "wide-tables"):
        assert f"jpeg-{name}.jpg" in jpegs
    assert [name for name in jpegs if any(rare in name for rare in RARE)] == ["jpeg-baseline-411.jpg"]
    assert all(name.startswith("jpeg-") and name != "jpeg-2000.jpg" for name in ordinary)


def encoded(pixels: NDArray[np.uint8], kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def jpeg(make_photo: Photo) -> bytes:
    return encoded(make_photo(60, 80, 0), quality=90)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"exif": b"Exif\0\0" + bytes(9000)}),  # the frame header lies beyond the first read
        ("RGB", {"icc_profile": bytes(200_000)}),  # several segments
    ],
)
def test_a_frame_header_is_found_behind_long_segments(mode: str, options: dict[str, Any], make_photo: Photo) -> None:
    assert header(encoded(make_photo(45, 71, 1), mode=mode, **options))[:2] == (45, 71)


@pytest.mark.parametrize("padding", range(4030, 4110))
def test_a_frame_header_is_found_at_the_end_of_what_is_read_at_once(padding: int, jpeg: bytes) -> None:
    content = jpeg[:2] + b"\xff\xef" + (padding + 2).to_bytes(2, "big") + bytes(padding) + jpeg[2:]
    assert header(content)[:3] == (60, 80, Kind.ORDINARY)


@pytest.mark.parametrize("padding", range(3400, 4000, 20))
def test_exif_behind_the_frame_header_is_found_at_the_end_of_what_is_read_at_once(padding: int, jpeg: bytes) -> None:
    scan = jpeg.index(b"\xff\xda")
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    padded = jpeg[:2] + b"\xff\xef" + (padding + 2).to_bytes(2, "big") + bytes(padding) + jpeg[2:scan]
    turned = padded + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    assert header(padded + jpeg[scan:])[:4] == (60, 80, Kind.ORDINARY, 1)
    assert header(turned + jpeg[scan:])[:4] == (60, 80, Kind.PILLOW, 6)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_a_file_for_which_memory_is_short_is_named(
    kind: str, make_photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(make_photo(20, 20, 0), kind, exif=exif)
    monkeypatch.setattr(Image, "open", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError, match=r"while reading image\.jpg"):
        header(content)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.999])
def test_a_cut_jpeg_is_found_wherever_it_is_cut(kept: float, jpeg: bytes) -> None:
    with pytest.raises(DataError, match="truncated: no end marker"):
        header(jpeg[: int(len(jpeg) * kept)])


def test_the_end_of_a_thumbnail_is_not_taken_for_that_of_the_image(jpeg: bytes) -> None:
    frame = jpeg.index(b"\xff\xc0")
    thumbnail = b"\xff\xe1\x00\x06ab\xff\xd9"
    with pytest.raises(DataError, match="truncated: no end marker"):
        header(jpeg[:frame] + thumbnail + jpeg[frame : frame + 40])


@pytest.mark.parametrize("cut", [1, 4, 11, 12, 13, 60, 400])
def test_a_cut_png_is_found(cut: int, make_photo: Photo) -> None:
    with pytest.raises(DataError, match="truncated"):
        header(encoded(make_photo(45, 71, 1), "PNG")[:-cut])


def test_jpegs_and_pngs_are_read_without_pillow_and_in_parts(
    make_photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("resnet_dist.data.headers.image.open_image")
    for content in (encoded(make_photo(600, 800, 1), quality=95), encoded(make_photo(600, 800, 1), "PNG")):
        read: list[int] = []

        def part(num: int, offset: int, content: bytes = content, read: list[int] = read) -> bytes:
            read.append(num)
            return content[offset : offset + num]

        assert header_of("x", len(content), part)[:2] == (600, 800)
        assert sum(read) < 25_000 < len(content)


@pytest.mark.parametrize("byte", [11, 14, 19, 23, 24, 31])  # length, type, width, height, depth, checksum
def test_a_png_whose_header_is_damaged_is_found(byte: int, make_photo: Photo) -> None:
    content = bytearray(encoded(make_photo(45, 71, 1), "PNG"))
    content[byte] ^= 0x55
    with pytest.raises(DataError, match="header is damaged"):
        header(bytes(content))


def test_files_are_read_from_disk_and_named(jpeg: bytes, tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    file.write_bytes(jpeg)
    assert image_header(str(file)) == header(jpeg)
    file.write_bytes(b"404 not found")
    with pytest.raises(DataError, match="is not an image") as caught:
        image_header(str(file))
    assert caught.value.path == str(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read: No such file"):
        image_header(str(tmp_path / "gone.jpg"))


def test_no_file_stays_open(jpeg: bytes, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for content in (jpeg, jpeg[:100], b"text"):
        (tmp_path / "x.jpg").write_bytes(content)
        try:
            image_header(str(tmp_path / "x.jpg"))
        except DataError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_warnings_of_pillow_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # a warning from 2,000 pixels on, an error from 4,000 on
    large = [image for image in good_images() if image.name in ("webp-lossy.webp", "png-exif-6.png", "gif.jpg")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(io.BytesIO(large[0].content))
        for image in large:
            assert header(image.content).orientation == image.orientation
            with open_image(image.content) as opened:
                assert np.array_equal(opened.convert("RGB"), image.pixels)
        warnings.simplefilter("error")  # others may set filters again
        assert header(large[0].content)[:2] == (45, 71)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for image in large:
        with pytest.raises(DataError, match=r"limit of 2,000|exceeds limit of 2000"):
            header(image.content)


def test_the_orientation_of_a_damaged_exif_block_is_pillows(jpeg: bytes) -> None:
    """Bytes of a usual block are exchanged at random: whatever Pillow finds is recorded."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "a camera", "2026:01:01 00:00:00"
    block, random = exif.tobytes(), np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        damaged = bytearray(block)
        for place in random.integers(6, min(len(block), 60), size=int(random.integers(1, 3))):
            damaged[place] = int(random.choice([0, 1, 2, 3, 4, 6, 8, 18, 255]))
        content = jpeg[:2] + b"\xff\xe1" + (len(damaged) + 2).to_bytes(2, "big") + bytes(damaged) + jpeg[2:]
        orientation = jpeg_header("x", len(content), content, lambda *_: b"")[3]
        seen.add(orientation)
        with open_image(content) as image:
            try:
                found = image.getexif().get(0x0112, 1)
            except Exception:  # which one depends on the damage
                found = 1
        assert orientation == (found if found in range(1, 9) else 1)
    assert len(seen) > 3
