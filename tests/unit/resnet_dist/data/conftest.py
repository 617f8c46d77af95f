"""Small photo-like images, written once for all tests of the data package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from resnet_dist.data import Index, index_image_folder

SIZES = ((60, 80), (48, 48), (75, 50), (40, 97), (64, 64), (33, 71))  # height, width


def photo(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Smooth colours with an edge or two: uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    image = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    image[height // 3 : height // 2, width // 4 : width // 2] = random.integers(0, 256, 3, dtype=np.uint8)
    return image


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_photo() -> Callable[[int, int, int], NDArray[np.uint8]]:
    return photo


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train: 3 classes of 4 images of several sizes; val: 3 classes of 2. Tests must not write to it."""
    root = tmp_path_factory.mktemp("images")
    for split, per_class in (("train", 4), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for number in range(per_class):
                seed = 10 * label + number
                image = Image.fromarray(photo(*SIZES[seed % len(SIZES)], seed))
                image.save(root / split / name / f"{number}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def train_index(image_folder: Path) -> Index:
    return index_image_folder(str(image_folder), "train")


@pytest.fixture(scope="session")
def val_index(image_folder: Path) -> Index:
    return index_image_folder(str(image_folder), "val")
