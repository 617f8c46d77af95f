"""`data.exif`: a folder of images with EXIF orientations trains as one whose images were turned before."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import OddImage, good_images
from PIL import Image
from torch import Tensor

from resnet_dist.data import BatchRequest, Index, crops, index_image_folder
from resnet_dist.data.decoding import dali as decode_dali
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.decoding.dali import DaliDecoder
from resnet_dist.data.decoding.requests import Decoder
from resnet_dist.data.storage.files import files_of

RESOLUTION = 24
TURNED = [image for image in good_images() if image.orientation != 1]


def folder_of(root: Path, contents: Iterable[tuple[str, bytes]]) -> Index:
    for name, content in contents:
        for split in ("train", "val"):
            (root / split / "a").mkdir(parents=True, exist_ok=True)
            (root / split / "a" / name).write_bytes(content)
    return index_image_folder(str(root), "train")


def trained_on(index: Index, decoder: Decoder) -> Tensor:
    """Two random windows of each image."""
    positions = np.arange(2 * len(index), dtype=np.int64)
    ids = positions % len(index)
    windows = crops.training_windows(index.heights[ids], index.widths[ids], positions, 0, (0.08, 1.0), (3 / 4, 4 / 3))
    flips = crops.flips(positions, 0)
    request = BatchRequest.of(index, files_of(index), positions, ids, windows, flips, RESOLUTION)
    [decoded] = decoder.decode(iter([request]))
    assert not decoded.errors
    return decoded.images


def as_png(image: OddImage, *, turned: bool) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.turned if turned else image.pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return folder_of(tmp_path_factory.mktemp("odd"), [(image.name, image.content) for image in TURNED])


DECODERS = {
    "pillow": lambda: CpuDecoder(2, 1),
    "regions": lambda: CpuDecoder(2, 1, regions=True),
    "dali": lambda: DaliDecoder(2, 1, 2 * len(TURNED)),
}
NEED_DALI = ("dali", "regions")  # DALI brings nvImageCodec


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_the_same_pixels_as_from_files_that_were_turned_before(
    name: str, exif: str, odd: Index, tmp_path: Path
) -> None:
    if name in NEED_DALI and not decode_dali.is_installed():
        pytest.skip("NVIDIA DALI is not installed")
    decoder = DECODERS[name]()
    files = [(f"{image.name}.png", as_png(image, turned=exif == "apply")) for image in TURNED]
    expected = trained_on(folder_of(tmp_path, files), decoder)
    assert torch.equal(trained_on(odd.with_exif(exif), decoder), expected)  # type: ignore[arg-type]


def test_all_orientations_are_tried() -> None:
    assert {image.orientation for image in TURNED} == {2, 3, 4, 5, 6, 7, 8}


def test_sizes_are_those_of_the_turned_images_only_if_they_are_turned(odd: Index) -> None:
    ignored, applied = odd.with_exif("ignore"), odd.with_exif("apply")
    assert set(ignored.orientations.tolist()) == {1}
    assert np.array_equal(ignored.heights, odd.heights)
    images = {image.name: image for image in TURNED}
    for row, path in enumerate(odd.paths):
        image = images[Path(path).name]
        assert image.turned is not None
        assert (applied.heights[row], applied.widths[row]) == image.turned.shape[:2]
        assert applied.orientations[row] == image.orientation
    assert ignored.fingerprint() == odd.fingerprint() != applied.fingerprint()
